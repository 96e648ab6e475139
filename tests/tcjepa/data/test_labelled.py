import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa.data.augment import centre_crop
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import decode
from tcjepa.data.folder import ImageFolder
from tcjepa.data.index import ShardIndex
from tcjepa.data.labelled import labelled
from tests.tcjepa.shards import image, write_shards

CONFIG = DataConfig(shards="unused")


def open_index(tmp_path: Path) -> ShardIndex:
    return ShardIndex.open(
        DataConfig(shards=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"))
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_in_index_order(tmp_path: Path, workers: int) -> None:
    samples = write_shards(tmp_path / "shards", 11, meta=lambda n: {"label": n % 3})
    found = list(labelled(open_index(tmp_path), 24, 4, CONFIG, workers))
    assert [len(rows) for _, rows, _ in found] == [4, 4, 3]
    assert torch.cat([rows for _, rows, _ in found]).tolist() == list(range(11))
    assert [sample for *_, part in found for sample in part] == samples
    images = torch.cat([images for images, *_ in found])
    expected = [centre_crop(decode(image(n, 48, 40), "jpg", 10**6), 24) for n in range(11)]
    assert np.array_equal(images.numpy(), np.stack(expected))


def test_unreadable_is_left_out_with_a_warning(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 4, encode=lambda n: b"broken" if n == 1 else image(n, 48, 40))
    with pytest.warns(UserWarning, match="row 1 is left out"):
        ((images, rows, samples),) = labelled(open_index(tmp_path), 24, 4, CONFIG)
    assert rows.tolist() == [0, 2, 3] and images.shape[0] == len(samples) == 3


def test_image_folder(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/x/1.jpeg", "a/0.jpg", "b/3.webp", "b/notes.txt", "loose.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower().lstrip(".").replace("jpeg", "jpg")
        path.write_bytes(b"x" if suffix == "txt" else image(len(name), 40, 48, suffix))
    folder = ImageFolder.open(tmp_path)
    assert folder.classes == ["a", "b"] and len(folder) == 4
    ((images, rows, samples),) = labelled(folder, 24, 8, CONFIG)
    assert images.shape == (4, 3, 24, 24) and rows.tolist() == [0, 1, 2, 3]
    assert sorted((s["uid"], s["meta"]["label"], s["meta"]["class"]) for s in samples) == [
        ("a/0.jpg", 0, "a"), ("a/x/1.jpeg", 0, "a"), ("b/2.PNG", 1, "b"), ("b/3.webp", 1, "b"),
    ]  # fmt: skip


def test_the_first_images_of_a_folder_are_of_several_classes(tmp_path: Path) -> None:
    """Limits take the first N."""
    names = [f"{name}/{number}.jpg" for name in "abc" for number in range(20)]
    names.append(os.fsdecode(b"a/\xff.jpg"))  # no UTF-8, which a file system may hold
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(0, 8, 8))
    folder = ImageFolder.open(tmp_path)
    found = [folder.image_and_sample(row)[2] for row in range(len(folder))]
    assert sorted(sample["uid"] for sample in found) == sorted(names)
    assert {sample["meta"]["class"] for sample in found[:12]} == {"a", "b", "c"}
    shutil.copytree(tmp_path, tmp_path / "d" / "copy")  # the order is that of names, not of paths
    copy = ImageFolder.open(tmp_path / "d" / "copy")
    assert [copy.image_and_sample(row)[2] for row in range(len(copy))] == found


def test_image_folder_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ImageFolder.open(tmp_path / "nowhere")
    (tmp_path / "loose.jpg").write_bytes(image(0, 8, 8))
    with pytest.raises(ConfigError, match=r"no images .* in class subfolders"):
        ImageFolder.open(tmp_path)
