"""Small files that would cost a decoder minutes or gigabytes are refused before it sees them."""

from __future__ import annotations

import io
import struct
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.fetch.image_header import image_size
from pipeline.filters.animation import is_animated
from pipeline.stages.failures import classify
from pipeline.stages.integrity import CheckedResizer
from tests.peak_memory import peak_growth


def reason(data: bytes, **options: Any) -> str | None:
    defaults = {"image_size": 64, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}
    resize = CheckedResizer(**{"max_pixels": 1_000_000, **defaults, **options})
    *_, error = resize(io.BytesIO(data))
    return None if error is None else classify(error)


def saved(kind: str, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("claimed", [None, (16, 16)])
def test_avif_is_not_decoded(claimed: tuple[int, int] | None) -> None:
    """Its header may claim 16 x 16 where the AV1 frame has 12,000 x 12,000."""
    data = bytearray(saved("AVIF"))
    if claimed is not None:
        struct.pack_into(">II", data, data.index(b"ispe") + 8, *claimed)
    assert reason(bytes(data)) == "not_an_image"


def with_scans(count: int, size: tuple[int, int], between: bytes = b"") -> bytes:
    """Return a grey progressive JPEG (6 scans) with its last scan repeated."""
    buffer = io.BytesIO()
    Image.new("L", size, 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + (between + data[last:end]) * (count - 6) + data[end:]


def test_a_jpeg_of_many_scans_is_refused() -> None:
    """75 bytes a scan, in each of which the decoder goes over the whole picture."""
    assert reason(with_scans(100, (64, 48))) is None
    assert reason(with_scans(101, (64, 48))) == "too_many_pixels"
    assert reason(with_scans(200_000, (64, 48))) == "too_many_pixels"


def test_the_larger_a_jpeg_the_fewer_its_scans() -> None:
    assert reason(with_scans(10, (1000, 1000))) is None
    assert reason(with_scans(11, (1000, 1000))) == "too_many_pixels"
    assert reason(with_scans(20, (1000, 500))) is None
    assert reason(saved("JPEG", (1000, 1000), progressive=True)) is None  # 10 scans, as usual


@pytest.mark.parametrize(
    "between",
    [
        b"\xff\xfe\0\4\xff\xd9",  # an end marker in a comment
        b"\xff\xfe\0\2" * 1000,
        b"\xff" * 9,
        b"\xff\xd3",
        b"\xff\xd0\xff\x02\xff\xff",  # markers without a length, the second none at all
        b"stray",
    ],
)
def test_scans_are_not_hidden_by_what_stands_between(between: bytes) -> None:
    assert reason(with_scans(300, (64, 48), between)) == "too_many_pixels"


def test_bytes_after_the_image_are_no_scans() -> None:
    """A camera's video, say."""
    assert reason(saved("JPEG") + b"\xff\xda\0\2" * 1000) is None


@pytest.mark.parametrize("segment", [b"\xff\xfe\0\2", b"\xff\xfe\0\2\xff\xff\xff"])
def test_a_jpeg_of_many_segments_is_refused(segment: bytes) -> None:
    whole = saved("JPEG")
    assert reason(whole[:2] + segment * 150_000 + whole[2:]) == "not_an_image"
    scan = whole.index(b"\xff\xda")
    assert reason(whole[:scan] + segment * 150_000 + whole[scan:]) == "too_many_pixels"
    assert reason(whole[:scan] + segment * 1000 + whole[scan:]) is None


def test_padding_in_a_jpeg_is_skipped() -> None:
    whole = saved("JPEG")
    assert reason(whole[:2] + b"\xff" * 5_000_000 + whole[2:]) is None
    assert reason(b"\xff\xd8" + b"\xff" * 20_000_000 + b"\xff\xd9") == "not_an_image"


def tiff(
    order: str = "<", big: bool = False, size: tuple[int, int] = (16, 16), **claims: int
) -> bytes:
    """Return a TIFF header that claims what the tests below name; there are no pixels."""
    bits, samples = claims.get("bits", 8), claims.get("samples", 3)
    tags = [
        (256, 4, [size[0]]),
        (257, 4, [size[1]]),
        (258, 3, [bits] * samples),
        (277, 3, [samples]),
    ]
    names = {"strip": 278, "tile_width": 322, "tile_height": 323}
    tags += [(names[name], 4, [value]) for name, value in claims.items() if name in names]
    word, room = ("Q", 8) if big else ("I", 4)
    head = (b"II" if order == "<" else b"MM") + (
        struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    )
    head += struct.pack(order + ("Q" if big else "H"), len(tags))
    end = len(head) + len(tags) * (4 + 2 * room) + room
    entries, elsewhere = b"", b""
    for tag, kind, values in tags:
        value = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(value) > room:
            value, elsewhere = struct.pack(order + word, end + len(elsewhere)), elsewhere + value
        entries += struct.pack(order + "HH" + word, tag, kind, len(values)) + value.ljust(
            room, b"\0"
        )
    return head + entries + bytes(room) + elsewhere


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("claims", "sound"),
    [
        ({}, True),
        ({"samples": 4, "bits": 16}, True),
        ({"samples": 1, "bits": 1}, True),
        ({"bits": 32}, False),
        ({"bits": 64, "samples": 4}, False),
        ({"samples": 5}, False),
        ({"samples": 1000}, False),
        ({"tile_width": 256, "tile_height": 256}, True),
        ({"tile_width": 16_000, "tile_height": 16_000}, False),
        ({"tile_height": 1 << 24}, False),
        ({"tile_width": 1 << 24}, False),
        ({"strip": 16}, True),
        ({"strip": 0xFFFFFFFF}, True),  # the whole picture
        ({"strip": 1 << 24}, False),
    ],
)
def test_a_tiff_may_not_claim_more_than_its_picture_needs(
    order: str, big: bool, claims: dict[str, int], sound: bool
) -> None:
    assert image_size(tiff(order, big, **claims)) == ((16, 16) if sound else None)
    if not sound:
        assert reason(tiff(order, big, **claims)) == "not_an_image"


def test_real_tiffs_pass() -> None:
    for options in ({}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        assert reason(saved("TIFF", (900, 700), **options)) is None
    for pixels in (np.zeros((70, 90, 4), np.uint16), np.zeros((70, 90), np.uint8)):
        assert reason(cv2.imencode(".tiff", pixels)[1].tobytes()) is None


@pytest.mark.parametrize(("depth", "most"), [(np.uint8, 14), (np.uint16, 17)])
def test_a_large_picture_with_an_alpha_channel_takes_little_memory(depth: type, most: int) -> None:
    side = 4000
    large, small = (
        cv2.imencode(".png", np.zeros((n, n, 4), depth))[1].tobytes() for n in (side, 16)
    )
    fits = partial(reason, max_pixels=side * side)
    refused, growth = peak_growth(fits, large, warm_up=(small,))
    assert refused is None
    assert growth <= most * side * side


@pytest.mark.parametrize("label", [b"JFIF", b"Exif"])
def test_only_a_jpeg_is_stored_as_one(label: bytes) -> None:
    """img2dataset asks imghdr, which reads nothing but these four bytes."""
    data = bytearray(saved("BMP"))
    data[6:10] = label
    assert reason(bytes(data), skip_reencode=True) == "not_an_image"
    assert reason(saved("BMP"), skip_reencode=True) is None
    assert reason(saved("JPEG"), skip_reencode=True) is None


SCREEN = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0)
FRAME = b",\0\0\0\0\1\0\1\0\0\2\2L\1\0"


@pytest.mark.parametrize(
    "data",
    [
        SCREEN + b"!\xfe\0" * 200_000,
        SCREEN + FRAME * 200_000,
        SCREEN + b"!\xfe" + b"\1\1" * 200_000 + b"\0",
    ],
    ids=["extensions", "frames", "tiny blocks"],
)
def test_a_gif_of_many_blocks_is_refused(data: bytes) -> None:
    assert reason(data + FRAME * 2 + b";") == "not_an_image"
    assert not data.startswith(SCREEN + b"!") or not is_animated(data + FRAME * 2 + b";")


def test_a_long_gif_is_not_refused() -> None:
    frames = [Image.effect_noise((64, 64), 50) for _ in range(300)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert reason(buffer.getvalue()) is None
    assert is_animated(buffer.getvalue())
