"""Memory that is used again: fresh pages cost up to a quarter of a loader's time.

The system hands large blocks out page by page, zeroed, and takes them back when they are freed;
huge pages make that cheap, but a busy machine runs out of them, and shared memory has none.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.settings import ConfigError

_SHARED_MEMORY: Final = "/dev/shm"
_ROOM: Final = 4 * 2**20
_HUGE: Final = 2 * 2**20

Pixels = NDArray[np.uint8]


def room(size: int) -> Pixels:
    """Return `size` bytes (size,) uint8 with anything in them, in huge pages where there are any.

    numpy asks for huge pages too, but for blocks from the process's heap, which lie across the
    borders of huge pages or were handed out in small ones before: the loader's rate then depends on
    what else the process did, by 5%.
    """
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, dtype=np.uint8)
    whole = -(-size // _HUGE) * _HUGE
    # Longer by one, so that a border lies in its first part; what nobody touches takes no memory.
    mapped = mmap.mmap(-1, whole + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    array: Pixels = np.frombuffer(mapped, dtype=np.uint8)
    start = -array.ctypes.data % _HUGE
    return array[start : start + size]


def _references(arrays: list[Pixels], number: int) -> int:
    """Return how many hold an array: its list, and a tensor of it as long as that or a view lives.

    More by what this call itself adds.
    """
    return sys.getrefcount(arrays[number])


#: What `_references` gives for an array that only its list holds.
_UNSHARED: Final = _references([np.empty(0, dtype=np.uint8)], 0)


class BatchMemory:
    """Batches of pixels whose memory is used again once nobody holds a tensor or array of it.

    One per thread; pickles empty. `most` is how many batches it keeps; a consumer that holds more
    gets fresh ones.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._arrays: list[Pixels] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchMemory, (self._most,)

    def empty(self, count: int, size: int) -> Tensor:
        """Return a batch (count, size, size, 3) uint8 with anything in it.

        In a worker process it lies in shared memory from the start, as in torch's
        `default_collate`: sending any other tensor would copy it there. Such memory is the
        receiver's, and not used again.
        """
        shape = (count, size, size, 3)
        if torch.utils.data.get_worker_info() is not None:
            return _shared(shape)
        self._arrays = [array for array in self._arrays if array.shape == shape]
        for number in range(len(self._arrays)):
            if _references(self._arrays, number) == _UNSHARED:
                return torch.from_numpy(self._arrays[number])
        array = room(math.prod(shape)).reshape(shape)
        if len(self._arrays) < self._most:
            self._arrays.append(array)
        return torch.from_numpy(array)


class SharedBatches:
    """Shared memory that worker processes write batches into, by number.

    The trainer makes it, sends it to its workers once, and names a number with each task. It takes
    a number again once the batch has come and nobody in the trainer holds it any more: sending a
    batch in memory of its own costs a descriptor, a mapping, and fresh pages on both sides.

    Raises `ConfigError` if the system has less shared memory than all of it, or than that of all
    ranks here: a worker that wrote beyond its end would be killed without a word.
    """

    def __init__(self, most: int, count: int, size: int) -> None:
        _check_shared(most * count * size * size * 3)
        self.key = next(_KEYS)
        _MADE_HERE[self.key] = self
        # In one piece: each would take a descriptor, and no more than 253 can be sent at a time.
        self._shared = _shared((most, count, size, size, 3))
        self._arrays: list[Pixels] = list(self._shared.numpy())
        self._on_its_way = [False] * most

    def __getstate__(self) -> dict[str, Any]:
        return {"key": self.key, "_shared": self._shared}

    def __getitem__(self, number: int) -> Tensor:
        """Return the memory of a number, to write to: (count, size, size, 3) uint8."""
        return self._shared[number]

    def take(self) -> int | None:
        """Return a number that is free, for a task; None if there is none."""
        for number, is_on_its_way in enumerate(self._on_its_way):
            if not is_on_its_way and _references(self._arrays, number) == _UNSHARED:
                self._on_its_way[number] = True
                return number
        return None

    def received(self, number: int) -> Tensor:
        """Return the batch that was written; while anything of it is held, it is not free."""
        images = torch.from_numpy(self._arrays[number])
        self._on_its_way[number] = False
        return images


class Place(NamedTuple):
    """Where a batch lies that comes from a worker: `SharedBatches.key`, and the number in it."""

    key: int
    number: int

    def received(self) -> Tensor:
        """Return the batch, in the process that made the memory; see `SharedBatches.received`."""
        return _MADE_HERE[self.key].received(self.number)


_KEYS: Final = itertools.count()
#: Of this process, for `DataLoader`'s pinning thread, which is given batches and nothing else.
_MADE_HERE: Final[WeakValueDictionary[int, SharedBatches]] = WeakValueDictionary()


def _check_shared(needed: int) -> None:
    if not Path(_SHARED_MEMORY).exists():  # not on Linux
        return
    found = shutil.disk_usage(_SHARED_MEMORY)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Each rank has batches of its own; what the others have written by now is not free any more.
    if needed > found.free or needed * ranks > found.total:
        raise ConfigError(
            f"data.workers: the batches that workers prepare take {needed >> 20:,} MiB of shared "
            f"memory for each of {ranks} ranks, and {_SHARED_MEMORY} has {found.free >> 20:,} of "
            f"{found.total >> 20:,} MiB free; give a container more (docker: --shm-size, "
            "--ipc=host), or lower data.workers, data.prefetch or train.batch"
        )


def _shared(shape: tuple[int, ...]) -> Tensor:
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    images: Tensor = torch.empty(0, dtype=torch.uint8)
    return images.set_(storage).view(shape)


class ReadMemory:
    """Room for the compressed samples of one draft; one per thread, pickles empty."""

    def __init__(self) -> None:
        self._room = memoryview(b"")
        self._used = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadMemory, ()

    def clear(self) -> None:
        """Give the room free: what `take` returned before is overwritten from now on."""
        self._used = 0

    def take(self, size: int) -> memoryview:
        """Return `size` writable bytes, valid until `clear`; fresh ones where the room is full."""
        if not self._room:
            self._room = room(_ROOM).data
        start = self._used
        if size > _ROOM - start:
            return memoryview(bytearray(size))
        self._used = start + size
        return self._room[start : self._used]


__all__ = ["BatchMemory", "Place", "ReadMemory", "SharedBatches", "room"]
