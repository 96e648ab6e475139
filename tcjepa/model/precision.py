"""Arithmetic that must not run in half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is narrower, else as it is, so that float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


__all__ = ["wide"]
