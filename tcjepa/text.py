"""stub"""
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True)
class TextBatch:
    """Captions of a batch as word embeddings; equal captions are stored once."""

    words: Tensor  # (U, S, F) word embeddings
    valid: Tensor  # (U, S) bool, True at words, False at padding
    caption: Tensor  # (B, N) int64 into U; -1 where the image has fewer captions
