"""What errors of torch say about the device: memory ran out, and a smaller batch may fit."""

from __future__ import annotations

import gc

#: How allocators other than the CUDA one, and libraries that CUDA calls, say it in a RuntimeError.
_NO_MEMORY = (
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory, of a GPU or of the machine, ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    import torch

    # Models have reference cycles; until they are collected their weights stay.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


__all__ = ["out_of_memory", "release_memory"]
