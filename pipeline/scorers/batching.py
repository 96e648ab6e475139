"""Model batches that shrink when memory runs out; shared by the encoders of this room."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

T = TypeVar("T")
Floats = NDArray[np.float32]


def in_batches(items: Sequence[T], size: int, run: Callable[[Sequence[T]], Floats]) -> Floats:
    """Return `run` of all items, (n, D) float32, in batches of `size` in the items' order.

    Out of memory halves the batch, for the rest of the call too, and goes on; with one item it is
    raised. Batches are a function of the items and `size`, so results are the same on every run:
    only a run whose memory was short can differ in the last digits of a float.
    """
    found: list[Floats] = []
    start = 0
    while start < len(items):
        try:
            found.append(run(items[start : start + size]))
        except Exception as error:
            if not out_of_memory(error) or size == 1:
                raise
            size = max(1, min(size, len(items) - start) // 2)
            log.warning("out of memory: going on with batches of %d", size)
            _release_memory()
            continue
        start += size
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def out_of_memory(error: Exception) -> bool:
    """Return whether an error of a model says that memory ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def torch_device(device: str, key: str) -> Any:
    """Return the torch device that a config names; `ConfigError` if there is no such GPU."""
    import torch

    from pipeline.settings import ConfigError

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"{key}.device: {device} asked for, but torch sees no GPU; use auto")
    return torch.device(device)


def torch_dtype(dtype: str, device: Any) -> Any:
    """Return the torch dtype that a config names: `auto`, `bf16` or `fp32`."""
    import torch

    if dtype == "bf16":
        return torch.bfloat16
    # Only where the hardware multiplies it: emulated bf16 on a CPU is slower than float32.
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if dtype == "auto" and fast else torch.float32


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
