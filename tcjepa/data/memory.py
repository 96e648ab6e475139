"""Memory that is used again, because fresh pages cost a tenth of a loader's time.

The system hands large blocks out page by page, zeroed, and takes them back when they are freed.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: References to an array that nothing but `BatchMemory` knows: its list, a variable, an argument.
_UNSHARED: Final = 3
_ROOM: Final = 4 * 2**20


class BatchMemory:
    """Batches of pixels whose memory is used again once nobody holds a tensor or array of it.

    One per thread; pickles empty. `most` is how many batches it keeps; a consumer that holds more
    gets fresh ones.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._arrays: list[NDArray[np.uint8]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchMemory, (self._most,)

    def empty(self, count: int, size: int) -> Tensor:
        """Return a batch (count, size, size, 3) uint8 with anything in it.

        In a worker process it lies in shared memory from the start, as in torch's
        `default_collate`: sending any other tensor would copy it there. Such memory is the
        receiver's, and never used again. Elsewhere it is numpy's, which asks for huge pages.
        """
        shape = (count, size, size, 3)
        if torch.utils.data.get_worker_info() is not None:
            storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
            images: Tensor = torch.empty(0, dtype=torch.uint8)
            return images.set_(storage).view(shape)
        self._arrays = [array for array in self._arrays if array.shape == shape]
        for array in self._arrays:
            if sys.getrefcount(array) == _UNSHARED:  # a tensor of it holds it, and so do its views
                return torch.from_numpy(array)
        array = np.empty(shape, dtype=np.uint8)
        if len(self._arrays) < self._most:
            self._arrays.append(array)
        return torch.from_numpy(array)


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
            self._room = memoryview(bytearray(_ROOM))
        start = self._used
        if size > _ROOM - start:
            return memoryview(bytearray(size))
        self._used = start + size
        return self._room[start : self._used]


__all__ = ["BatchMemory", "ReadMemory"]
