"""Memory that is used again is never somebody's."""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.data.batch import Batch
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import Scratch
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader, worker_context
from tcjepa.data.memory import BatchMemory, Place, ReadMemory, SharedBatches, room
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


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = shutil.disk_usage("/dev/shm").total
    side = math.isqrt(total // 6) + 1  # two of these are more than there is
    with pytest.raises(ConfigError, match=r"data\.workers: .* take [\d,]+ MiB .*--shm-size"):
        SharedBatches(most=2, count=1, size=side)
    fitting = math.isqrt(total // 3 // 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
    with pytest.raises(ConfigError, match=r"for each of 9 ranks"):
        SharedBatches(most=1, count=1, size=fitting)


def written(shared: SharedBatches, numbers: list[int]) -> None:
    for number in numbers:
        shared[number].fill_((number + 1) % 256)


def test_a_worker_writes_where_the_trainer_reads() -> None:
    shared = SharedBatches(most=3, count=2, size=4)
    numbers = [number for _ in range(4) if (number := shared.take()) is not None]
    assert numbers == [0, 1, 2]  # and none is left, since all are on their way
    worker = worker_context().Process(target=written, args=(shared, numbers))
    worker.start()
    worker.join()
    batches = [Place(shared.key, number).received() for number in numbers]
    assert [int(batch.max()) for batch in batches] == [int(batch.min()) for batch in batches]
    assert [int(batch.max()) for batch in batches] == [1, 2, 3]
    assert shared.take() is None  # all are held
    view = batches[1].permute(0, 3, 1, 2)[0].numpy()
    del batches
    assert [shared.take() for _ in range(3)] == [0, 2, None]
    assert view.min() == view.max() == 2
    del view
    assert shared.take() == 1


def test_any_number_of_batches_reaches_a_worker() -> None:
    """A process can be sent some 250 descriptors at a time."""
    shared = SharedBatches(most=300, count=1, size=2)
    worker = worker_context().Process(target=written, args=(shared, [0, 299]))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert shared[0].unique().tolist() == [1] and shared[299].unique().tolist() == [300 % 256]
    assert shared[1].max() == 0


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("keeps", [True, False])
def test_batches_of_workers_equal_those_of_none(tmp_path: Path, workers: int, keeps: bool) -> None:
    """Whether a consumer holds all of them, beyond the shared memory, or none."""
    write_shards(tmp_path, 40, lambda number: [caption(f"number {number}")], size=(40, 30))
    config = DataConfig(
        shards=str(tmp_path), image_size=16, workers=0, cache_dir=str(tmp_path / "cache")
    )
    index = ShardIndex.open(config)

    def batches(workers: int) -> Any:
        own = config.model_copy(update={"workers": workers})
        return make_loader(index, own, seed=0, global_batch=4, steps=30)

    expected = [batch.images.clone() for batch in batches(0)]
    loader = batches(workers)
    for _ in range(2):  # the second pass has workers and memory of its own
        held = list(loader) if keeps else loader
        places = []
        for batch, other in zip(held, expected, strict=True):
            assert batch.place is None
            torch.testing.assert_close(batch.images, other, rtol=0, atol=0)
            places.append(batch.images.data_ptr())
        assert len(places) == 30
        assert keeps == (len(set(places)) == 30)


def test_torch_shares_nothing_but_images() -> None:
    """Each tensor it shares costs a descriptor and leaves a small block in the trainer's heap."""
    shared = SharedBatches(most=1, count=2, size=4)
    images = shared[0].permute(0, 3, 1, 2)
    rows = torch.tensor([7, 2**40])
    there = Batch(
        torch.empty(0), [["a dog"], []], rows, 12, [("u", "broken")], Place(shared.key, 0)
    )
    own = replace(there, images=images, place=None)
    for batch, most in ((there, 0), (own, 1)):
        sent = ForkingPickler.dumps(batch).tobytes()
        assert sent.count(b"rebuild_tensor") <= most
        found = ForkingPickler.loads(sent).received()
        assert found.images.shape == images.shape
        assert (found.rows.dtype, found.rows.tolist()) == (torch.int64, [7, 2**40])
        assert (found.captions, found.position, found.replaced, found.place) == (
            batch.captions, batch.position, batch.replaced, None
        )  # fmt: skip


@given(st.sampled_from([0, 1, 4096, 2**21 - 1, 2**21, 2**21 + 1, 5 * 2**20]))
def test_rooms_are_whole_writable_and_apart(size: int) -> None:
    first, second = room(size), room(size)
    first[:] = 1
    second[:] = 2
    assert first.shape == (size,) and first.flags.c_contiguous
    assert (first == 1).all() and (second == 2).all()


def test_decoded_rows_are_read_again_from_the_cache() -> None:
    """Those that begin at a multiple of 32 bytes, libjpeg-turbo writes past it."""
    buffer = Scratch().room(3 * 256 * 256)
    assert buffer is not None
    assert buffer.ctypes.data % 32 != 0
