"""Crops resized on the training device are those the loader would have made, to one level."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import ConfigError
from tcjepa.data.augment import Box, crop_into, cut_into
from tcjepa.data.batch import Batch
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import Pixels, open_image
from tcjepa.data.device_resize import carried_side, resize_crops
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
from tcjepa.train.distributed import World
from tcjepa.train.log import read
from tcjepa.train.loop import train
from tcjepa.train.run import Run
from tests.tcjepa.shards import image, write_shards
from tests.tcjepa.train.runs import tiny_config, write_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))
SIZE = 24
#: Smaller and larger than a crop, just fitting the room, decoded at a half, and beyond the room.
SIDES = ((20, 18), (40, 36), (27, 27), (30, 200), (120, 110), (200, 180))


def as_batch(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


@given(
    st.integers(1, 2 * SIZE), st.integers(1, 2 * SIZE), st.integers(0, 8), st.integers(0, 2**32 - 1)
)
def test_resizing_is_opencvs(height: int, width: int, more: int, seed: int) -> None:
    """Whatever else lies in the square."""
    room = max(height, width) + more
    square = np.random.default_rng(seed).integers(0, 256, (room, room, 3), np.uint8)
    expected = cv2.resize(square[:height, :width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    found = resize_crops(as_batch(square), torch.tensor([[height, width]]), SIZE)
    assert found.dtype == torch.uint8 and found.shape == (1, 3, SIZE, SIZE)
    assert (found.int() - as_batch(expected).int()).abs().max() <= 1


def test_each_image_of_a_batch_has_its_own_crop() -> None:
    square = torch.randint(256, (3, 3, 40, 40), dtype=torch.uint8)
    crops = torch.tensor([[40, 10], [7, 33], [24, 24]])
    found = resize_crops(square, crops, SIZE)
    for number in range(3):
        own = resize_crops(square[number : number + 1], crops[number : number + 1], SIZE)
        assert torch.equal(found[number], own[0])
    assert torch.equal(found[2], square[2, :, :SIZE, :SIZE]), "a crop of the size stays as it is"


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_crop_is_cut_or_resized_as_before(height: int, width: int) -> None:
    opened = open_image(image(3, width, height), "jpg", 10**6)
    box = Box(1, 2, height - 3, width - 4)
    expected = np.zeros((SIZE, SIZE, 3), np.uint8)
    crop_into(expected, opened, box)
    room = np.full((27, 27, 3), 77, np.uint8)
    crop = cut_into(room, opened, box, SIZE)
    assert max(crop) <= 27
    found = resize_crops(as_batch(room), torch.tensor([crop]), SIZE)
    assert (found.int() - as_batch(expected).int()).abs().max() <= 1


def batches(folder: Path, **keys: object) -> list[Batch]:
    config = DataConfig(
        shards=str(folder / "shards"), cache_dir=str(folder / "cache"), image_size=SIZE,
        workers=0, max_bad_share=1.0,
    ).model_copy(update=keys)  # fmt: skip
    index = ShardIndex.open(config)
    return list(make_loader(index, config, seed=0, global_batch=8, steps=10))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_become_those_that_the_loader_resizes(tmp_path: Path, workers: int) -> None:
    images = [image(number, *SIDES[number % len(SIDES)]) for number in range(12)]
    images[5] = images[5][: len(images[5]) // 2]
    write_shards(
        tmp_path / "shards", 48, shard_size=16, size=lambda n: SIDES[n % 12 % len(SIDES)],
        encode=lambda n: images[n % 12],
    )  # fmt: skip
    carried = batches(tmp_path, resize="device", workers=workers)
    resized = batches(tmp_path)
    assert any(batch.replaced for batch in resized)
    for own, other in zip(carried, resized, strict=True):
        assert other.crops is None
        assert own.images.shape == (8, 3, 27, 27) and own.crops is not None
        assert (own.rows.tolist(), own.captions) == (other.rows.tolist(), other.captions)
        assert own.replaced == other.replaced
        found = resize_crops(own.images, own.crops, SIZE)
        assert (found.int() - other.images.int()).abs().max() <= 1
    first = carried[0].first(3)
    assert first.crops is not None and len(first.crops) == len(first.images) == 3


def test_training_hardly_differs(tmp_path: Path) -> None:
    """Also in parts, and where images are held for the monitors."""
    write_config(tmp_path, steps=4, monitor_every=2, monitor_images=5)
    losses = {}
    for name, own in (
        ("loader", []),
        ("device", ["data.resize=device"]),
        ("parts", ["data.resize=device", "data.crop_room=40", "train.micro_batch=3"]),
    ):
        config = tiny_config(tmp_path, f"run={tmp_path / name}", *own)
        train(Run(config, CPU, lambda _: None))
        losses[name] = [record["loss"] for record in read(tmp_path / name)]
    assert losses["device"] == pytest.approx(losses["loader"], rel=1e-2)
    assert losses["parts"] == pytest.approx(losses["loader"], rel=1e-2)


def test_rooms() -> None:
    assert carried_side(DataConfig(shards="")) == 224
    assert carried_side(DataConfig(shards="", resize="device")) == 256
    assert carried_side(DataConfig(shards="", resize="device", crop_room=300)) == 300


@pytest.mark.parametrize("room", [31, 65])
def test_a_room_that_does_not_fit_is_refused(tmp_path: Path, room: int) -> None:
    write_config(tmp_path)
    with pytest.raises(ConfigError, match=f"crop_room={room} must lie between image_size=32"):
        tiny_config(tmp_path, f"data.crop_room={room}")
