"""Captions packed into rows of tokens, so that a transformer computes hardly any padding.

Captions differ in length, and padding them to the longest wastes about half of the work. Several
in one row, each attending to itself only, waste a few percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Rows are a multiple of this, for the tensor cores [tokens]
MULTIPLE: Final = 8
#: Rows are no shorter than this unless all captions fit in fewer: long rows leave few gaps, short
#: ones keep the masked-out part of the attention small [tokens]
SHORTEST_ROW: Final = 64
#: The caption number of padding.
NONE: Final = -1


@dataclass(frozen=True)
class Packing:
    """Token lists laid out in rows."""

    tokens: NDArray[np.int64]  # (rows, length), 0 at padding
    positions: NDArray[np.int64]  # (rows, length) from 0 within each list, 0 at padding
    owner: NDArray[np.int64]  # (rows, length) number of the list a token is of; NONE at padding
    start: NDArray[np.int64]  # (lists,) where each list begins in the flattened rows

    @property
    def padding(self) -> float:
        """Return the share of computed tokens that are padding, in [0, 1)."""
        return float((self.owner == NONE).mean()) if self.owner.size else 0.0


def pack(lists: Sequence[Sequence[int]]) -> Packing:
    """Lay out token lists in rows of equal length, best fit first; a list is never cut.

    Equal inputs give equal rows. The row length is a multiple of `MULTIPLE` that holds the longest
    list, at least `SHORTEST_ROW` if there are that many tokens.
    """
    lengths = [len(own) for own in lists]
    length = _rounded(max([1, *lengths, min(SHORTEST_ROW, sum(lengths))]))
    places, rows = _place(lengths, length)
    shape = (rows, length)
    tokens = np.zeros(shape, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    owner = np.full(shape, NONE, dtype=np.int64)
    for number, (own, (row, column)) in enumerate(zip(lists, places, strict=True)):
        span = slice(column, column + len(own))
        tokens[row, span] = own
        positions[row, span] = np.arange(len(own))
        owner[row, span] = number
    start = [row * length + column for row, column in places]
    return Packing(tokens, positions, owner, np.array(start, dtype=np.int64))


def _place(lengths: Sequence[int], length: int) -> tuple[list[tuple[int, int]], int]:
    """Return each list's (row, column), and the number of rows: longest first, tightest gap."""
    places = [(0, 0)] * len(lengths)
    by_gap: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens still free
    rows = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        own = lengths[number]
        gap = next((gap for gap in range(own, length + 1) if by_gap[gap]), None)
        if gap is None:
            row, gap, rows = rows, length, rows + 1
        else:
            row = by_gap[gap].pop()
        places[number] = (row, length - gap)
        by_gap[gap - own].append(row)
    return places, rows


def _rounded(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


__all__ = ["MULTIPLE", "NONE", "SHORTEST_ROW", "Packing", "pack"]
