"""Memory that is used again is never somebody's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
from tcjepa.data.memory import BatchMemory, ReadMemory
from tests.tcjepa.shards import caption, write_shards


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30))
def test_a_batch_that_is_held_is_never_written(asks: list[tuple[int, bool]]) -> None:
    """Whatever is held of the earlier ones: none, all, other sizes in between."""
    memory = BatchMemory()
    held: list[tuple[Tensor, int]] = []
    for number, (count, keeps) in enumerate(asks):
        images = memory.empty(count, 4)
        assert images.shape == (count, 4, 4, 3) and images.dtype == torch.uint8
        images.fill_(number)
        if keeps:
            held.append((images, number))
        del images
        for tensor, value in held:
            assert (tensor == value).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda images: images.permute(0, 3, 1, 2),
        lambda images: images[1:].numpy()[0],
        lambda images: memoryview(images.numpy()),
        lambda images: images.untyped_storage(),
    ],
)
def test_a_view_holds_a_batch(view: Callable[[Tensor], Any]) -> None:
    memory = BatchMemory()
    images = memory.empty(2, 8)
    place = images.data_ptr()
    kept = view(images)
    del images
    assert memory.empty(2, 8).data_ptr() != place
    del kept
    places = {memory.empty(2, 8).data_ptr() for _ in range(3)}
    assert len(places) == 1  # each of these is dropped at once, and used again


def test_no_more_than_a_few_are_kept() -> None:
    memory = BatchMemory(most=2)
    batches = [memory.empty(1, 4) for _ in range(5)]
    assert len({batch.data_ptr() for batch in batches}) == 5
    assert len(pickle.loads(pickle.dumps(memory))._arrays) == 0 and len(memory._arrays) == 2


def test_reads_lie_beside_each_other_until_they_are_cleared() -> None:
    memory = ReadMemory()
    small = [memory.take(100) for _ in range(3)]
    large = [memory.take(3 * 2**20) for _ in range(2)]  # the second finds no room
    for number, view in enumerate(small + large):
        view[:] = bytes([number]) * len(view)
    assert [bytes(view[:1]) for view in small + large] == [bytes([n]) for n in range(5)]
    memory.clear()
    memory.take(100)[:] = b"x" * 100
    assert bytes(small[0]) == b"x" * 100
    assert len(pickle.loads(pickle.dumps(memory)).take(5)) == 5


def test_batches_kept_equal_batches_looked_at_one_by_one(tmp_path: Path) -> None:
    write_shards(tmp_path, 40, lambda number: [caption(f"number {number}")], size=(40, 30))
    config = DataConfig(
        shards=str(tmp_path), image_size=16, workers=0, cache_dir=str(tmp_path / "cache")
    )

    def batches() -> Any:
        index = ShardIndex.open(config)
        return iter(make_loader(index, config, seed=0, global_batch=8, steps=8))

    all_at_once = [batch.images for batch in list(batches())]
    one_by_one = [batch.images.clone() for batch in batches()]
    for own, other in zip(all_at_once, one_by_one, strict=True):
        np.testing.assert_array_equal(own, other)
