"""stub"""
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True)
class Masks:
    """Context and target patches of a batch."""

    context: Tensor  # (B, C) int64 patch numbers, raster order of the grid
    targets: Tensor  # (B, M, T) int64
