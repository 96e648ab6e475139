"""Near-duplicate images: hashes within a few bits of one another, and colours that agree.

Two dangers shape this block. *Chaining*: with connected components, A~B~C puts A and C into one
cluster however far apart they are; in a composed world where scenes differ little, whole
backgrounds melt together. So clusters are stars: rows are visited in order of preference, a row
that no centre has taken becomes a centre and takes every free row within the radius. Every dropped
row is then a near-duplicate of the very row that is kept, and no two kept rows are near.
*Grey hashes*: a 64-bit DCT hash sees the layout only, and of a nearly blank image only noise. So
the mean colours of 4 x 4 cells must agree too, which also parts nearly blank images; drop those
first (`ImageFilterConfig.min_contrast`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.filters.keys import Words, mixed

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint8]

_BITS = 64
_SORT_COST = 20.0  # of one row, in comparisons of a pair


def near_duplicates(
    hashes: Hashes,
    radius: int,
    *,
    colours: Colours | None = None,
    tolerance: int | None = None,
    order: Rows | None = None,
) -> Rows:
    """Return for each row (n,) the row it is a copy of: its own number for rows to keep.

    Two rows are near when their `hashes` (n,) differ in at most `radius` bits and, if `tolerance`
    is given, each of their `colours` (n, 48) differs by at most `tolerance` levels. `order` (n,)
    lists the rows by preference, best first (`preference_order`); default: as they come.

    Exact, and near linear in n while clusters are small: candidates come from sorting (`_masks`).
    Rows that share a hash but not its colours are compared pairwise.
    """
    count = len(hashes)
    if tolerance is None or colours is None:
        colours, tolerance = np.zeros((count, 0), np.uint8), 0
    order = np.arange(count) if order is None else order
    if not count:
        return np.zeros(0, dtype=np.int64)
    # From here on a row's number is its rank. Equal rows are one: they have the same neighbours.
    first = exact_leaders(np.stack([hashes, _digest(colours)], axis=1)[order], np.arange(count))
    unique = np.flatnonzero(first == np.arange(count))
    pairs = _near_pairs(hashes[order[unique]], radius, colours[order[unique]], tolerance)
    star = stars(len(unique), pairs)
    labels = np.empty(count, dtype=np.int64)
    labels[order] = order[unique[star[np.searchsorted(unique, first)]]]
    return labels


def preference_order(
    trained: npt.NDArray[np.bool_], pixels: npt.NDArray[np.int64], uids: Words
) -> Rows:
    """Return the rows (n,) from the best to keep to the worst, whatever their order in the input.

    A copy in a held-out split comes first, so that nothing of a test set stays in the training set
    (`trained` (n,) is true in the split "train"); then more `pixels` (n,); then the smaller of
    `uids` (n, 2), from `uid_words`.
    """
    return np.lexsort((uids[:, 1], uids[:, 0], -pixels, trained)).astype(np.int64)


def exact_leaders(uids: Words, order: Rows) -> Rows:
    """Return for each row (n,) the most preferred row of the same image, by `uids` (n, 2)."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    by_uid = np.lexsort((rank, uids[:, 1], uids[:, 0]))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (uids[by_uid[1:]] != uids[by_uid[:-1]]).any(axis=1)
    leader = np.empty(len(order), dtype=np.int64)
    leader[by_uid] = by_uid[new][np.cumsum(new) - 1]
    return leader


def _digest(colours: Colours) -> Hashes:
    """Return 64 bits (n,) that are equal for equal rows of (n, w) bytes."""
    spare = -colours.shape[1] % 8
    words = np.pad(colours, ((0, 0), (0, spare))).view(np.uint64)
    return np.broadcast_to(mixed(0, *words.T), len(colours))


def _near_pairs(hashes: Hashes, radius: int, colours: Colours, tolerance: int) -> Rows:
    """Return the distinct near pairs (m, 2) of rows, smaller row first, sorted."""
    found: list[Rows] = []
    for mask in _masks(radius, len(hashes)):
        keys = hashes & mask
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        left = np.arange(len(keys) - 1)
        # Compare each row with the next, the second next, … of its run of equal keys.
        for distance in itertools.count(1):
            left = left[: np.searchsorted(left, len(keys) - distance)]
            left = left[keys[left] == keys[left + distance]]
            if not len(left):
                break
            pairs = np.stack([by_key[left], by_key[left + distance]], axis=1)
            pairs = pairs[np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= radius]
            a, b = colours[pairs[:, 0]], colours[pairs[:, 1]]
            difference = np.maximum(a, b) - np.minimum(a, b)
            found.append(pairs[(difference <= tolerance).all(axis=1)])
    if not found:
        return np.zeros((0, 2), dtype=np.int64)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _masks(radius: int, count: int) -> Iterator[np.uint64]:
    """Yield bit masks such that hashes within the radius agree under at least one of them.

    Pigeonhole: cut the 64 bits into radius + k blocks; at most `radius` of them differ, so some k
    agree (k = 1 is plain banding; Manku et al. 2007, "Detecting near-duplicates for web
    crawling"). More blocks to agree on mean more sorts and fewer false candidates; k is chosen by
    the expected cost for `count` random hashes, so that it stays near linear.
    """
    chosen = min(range(1, 7), key=lambda k: _cost(radius, k, count))
    blocks = radius + chosen
    edges = [round(_BITS * block / blocks) for block in range(blocks + 1)]
    whole = [((1 << end) - 1) ^ ((1 << start) - 1) for start, end in itertools.pairwise(edges)]
    for agreeing in itertools.combinations(whole, chosen):
        yield np.uint64(sum(agreeing))


def _cost(radius: int, agreeing: int, count: int) -> float:
    key_bits = _BITS * agreeing / (radius + agreeing)
    candidates = count * count / 2 / 2**key_bits
    return math.comb(radius + agreeing, agreeing) * (_SORT_COST * count + candidates)


def stars(count: int, pairs: Rows) -> Rows:
    """Return each row's centre (n,), given sorted near pairs (m, 2); centres in row order."""
    centre = np.full(count, -1, dtype=np.int64)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for start, end in itertools.pairwise([*starts.tolist(), len(pairs)]):
        row = pairs[start, 0]
        if centre[row] < 0:
            near = pairs[start:end, 1]
            centre[near[centre[near] < 0]] = row
    return np.where(centre < 0, np.arange(count), centre)
