"""What errors of torch say about the device: memory ran out, or nothing works on it any more."""

from __future__ import annotations

import gc
import sys

#: How allocators other than the CUDA one, and libraries that CUDA calls, say it in a RuntimeError.
_NO_MEMORY = (
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory, of a GPU or of the machine, ran out."""
    torch = sys.modules.get("torch")  # whose errors there are none of before it is loaded
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


class DeviceLostError(RuntimeError):
    """After an error such as an illegal access a process can use its GPU no more; a new one can."""


def device_lost(error: BaseException) -> bool:
    """Return whether what is on the device is lost: any later call would fail as this one did."""
    torch = sys.modules.get("torch")
    if out_of_memory(error):
        return False
    if isinstance(error, DeviceLostError) or (torch and isinstance(error, torch.AcceleratorError)):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    import torch

    # Models have reference cycles; until they are collected their weights stay.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["DeviceLostError", "device_lost", "out_of_memory", "release_memory"]
