"""Labelled images that are no shards of ours: webdataset tars, images beside masks."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.settings import ConfigError
from tcjepa.data.augment import centre_crop
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import decode
from tcjepa.data.labelled import labelled
from tcjepa.data.segmented import SegmentationFolder, crop_mask
from tcjepa.data.tars import LabelledTars
from tests.tcjepa.shards import image

CONFIG = DataConfig(shards="unused")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tars_as_webdataset_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for part in range(2):
        with webdataset.TarWriter(str(tmp_path / f"val-{part}.tar")) as sink:
            for n in range(3):
                number = 3 * part + n
                sample = {"__key__": f"n{number:04d}", "jpg": image(number, 48, 40)}
                sink.write({**sample, "cls": number % 2, "json": {"width": 48, "made": True}})
    source = LabelledTars.open(str(tmp_path / "val-*.tar"))
    ((images, rows, samples),) = labelled(source, 24, 8, CONFIG)
    assert rows.tolist() == list(range(6))
    numbers = [int(s["uid"].rpartition("n")[2]) for s in samples]
    assert sorted(numbers) == list(range(6))
    expected = [centre_crop(decode(image(n, 48, 40), "jpg", 10**6), 24) for n in numbers]
    assert np.array_equal(images.numpy(), np.stack(expected))
    assert [s["meta"] for s in samples] == [
        {"class": str(n % 2), "width": 48, "made": True} for n in numbers
    ]


def test_keys_that_begin_anew_in_each_tar_name_different_images(tmp_path: Path) -> None:
    for place in ("a/0.tar", "a/1.tar", "b/0.tar"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / place, {"000.jpg": image(1, 8, 8), "001.jpg": image(2, 8, 8)})
    source = LabelledTars.open(str(tmp_path / "*" / "*.tar"))
    uids = [source.image_and_sample(row)[2]["uid"] for row in range(6)]
    assert sorted(uids) == [
        f"{tar}/{key}" for tar in ("a/0.tar", "a/1.tar", "b/0.tar") for key in ("000", "001")
    ]


def test_the_first_images_of_tars_are_of_several_classes(tmp_path: Path) -> None:
    for name in "abc":
        members = {f"{n}.{end}": data for n in range(20) for end, data in (
            ("jpg", image(n, 8, 8)), ("cls", name.encode()),
        )}  # fmt: skip
        write_tar(tmp_path / f"{name}.tar", members)
    source = LabelledTars.open(str(tmp_path / "*.tar"))
    first = [source.image_and_sample(row)[2]["meta"]["class"] for row in range(12)]
    assert set(first) == {"a", "b", "c"}


def test_members_are_grouped_by_name_and_never_unpickled(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {
            "x/1.cls": b"cat\n",
            "x/1.JPG": image(1, 40, 40),
            "y/1.png": image(2, 40, 40, "png"),
            "notes.txt": b"no image here",
            "2.pickle": b"cos\nsystem\n(S'false'\ntR.",
            "2.jpeg": image(3, 40, 40),
            "3.jpg": b"broken",
            "4.jpg": image(4, 40, 40),
            "4.json": json.dumps(["no dict"]).encode(),
        },
    )
    source = LabelledTars.open(str(tmp_path / "a.tar"))
    assert len(source) == 5
    with pytest.warns(UserWarning, match="row . is left out"):
        ((images, rows, samples),) = labelled(source, 24, 8, CONFIG)
    assert rows.tolist() == sorted(rows.tolist()) and len(images) == len(rows) == 3
    assert sorted((s["uid"], s["meta"]) for s in samples) == [
        ("a.tar/2", {}),
        ("a.tar/x/1", {"class": "cat"}),
        ("a.tar/y/1", {}),
    ]


def test_tars_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tar matches"):
        LabelledTars.open(str(tmp_path / "*.tar"))
    (tmp_path / "b.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(ConfigError, match="cannot be read as a tar"):
        LabelledTars.open(str(tmp_path / "*.tar"))
    apart = {"0.png": image(0, 8, 8), "1.png": image(1, 8, 8), "0.cls": b"a", "1.cls": b"b"}
    write_tar(tmp_path / "b.tar", apart)
    with pytest.raises(ConfigError, match="the members of 0 do not stand together"):
        LabelledTars.open(str(tmp_path / "*.tar"))
    write_tar(tmp_path / "b.tar", {"1.txt": b"text"})
    with pytest.raises(ConfigError, match="no images"):
        LabelledTars.open(str(tmp_path / "*.tar"))


def png(numbers: np.ndarray, palette: bool = False) -> bytes:
    picture = Image.fromarray(numbers)
    if palette:
        picture = picture.convert("P")
        picture.putdata(numbers.flatten().tolist())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (28, 28)])
@pytest.mark.parametrize("palette", [False, True])
def test_a_mask_is_cropped_as_its_image_is(shape: tuple[int, int], palette: bool) -> None:
    """Blocks of one colour: image and mask must show the same blocks at the same places."""
    draws = np.random.default_rng(0).integers(0, 5, (shape[0] // 4, shape[1] // 4), np.uint8)
    numbers = draws.repeat(4, 0).repeat(4, 1)
    pixels = np.repeat((numbers * 50)[:, :, None], 3, axis=2)
    mask = crop_mask(png(numbers, palette), *shape, size=24)
    seen = centre_crop(pixels, 24)[0]
    inside = np.ones_like(mask, dtype=bool)  # away from edges, where the image's pixels are mixed
    for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inside &= np.roll(mask, shift, axis) == mask
    assert inside.sum() > 50
    assert (np.abs(seen.astype(int) - 50 * mask.astype(int))[inside] <= 25).mean() > 0.97


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_class_numbers_too(bits: int) -> None:
    """Pillow spreads the levels of such grey pictures over 0 to 255."""
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % (1 << bits)
    rows = np.packbits(
        np.unpackbits(numbers[..., None], axis=2)[..., -bits:].reshape(8, -1), axis=1
    )
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    found = crop_mask(data, 8, 8, size=8)
    assert (found == crop_mask(png(numbers), 8, 8, size=8)).all()


def write_pair(root: Path, number: int, side: int = 40) -> None:
    for name in ("images", "masks"):
        (root / name / "sub").mkdir(parents=True, exist_ok=True)
    (root / "images" / "sub" / f"{number}.jpg").write_bytes(image(number, side, side))
    mask = np.full((side, side), number % 3, np.uint8)
    (root / "masks" / "sub" / f"{number}.png").write_bytes(png(mask))


def test_a_segmentation_folder(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, number)
    assert SegmentationFolder.is_at(tmp_path) and not SegmentationFolder.is_at(tmp_path / "images")
    source = SegmentationFolder.open(tmp_path)
    (tmp_path / "masks" / "sub" / "1.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    with pytest.warns(UserWarning, match=r"row . is left out.*mask is 8 x 8.*expected 40 x 40"):
        ((images, rows, samples),) = labelled(source, 24, 8, CONFIG)
    assert len(rows) == 2 and images.dtype == torch.uint8
    found = {s["uid"]: int(s["mask"].max()) for s in samples}
    assert found == {"sub/0.jpg": 0, "sub/2.jpg": 2}
    assert samples[0]["mask"].shape == (24, 24)
    for number in range(3, 30):
        write_pair(tmp_path, number)
    source = SegmentationFolder.open(tmp_path)
    order = [source.image_and_sample(row)[2]["uid"] for row in range(30)]
    assert len(set(order)) == 30 and order != sorted(order)
    (tmp_path / "masks" / "sub" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of 30 images.* have no mask.*sub/0\.jpg"):
        SegmentationFolder.open(tmp_path)
