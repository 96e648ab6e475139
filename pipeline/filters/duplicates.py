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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.filters.keys import Words, mixed

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Colours = npt.NDArray[np.uint8]

_BITS = 64
_SORT_COST = 20.0  # of one row, in comparisons of a pair
_CLOSE_PER_ROW = 8.0  # pairs of close hashes that a run of equal keys may list in a round
_FAR_PAIR = 1 / 64  # what a pair of other hashes counts: it takes time but no memory
_CHUNK = 1 << 15  # pairs whose colours are compared at a time: 3 MB of colours stay in the cache


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

    Exact, in memory linear in n. Time is near linear in n and in each cluster: candidates come
    from sorting (`_masks`), and of a large cluster the first rows settle most of the others
    (`_centres`). Rows to keep that agree under a mask are compared pairwise.
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
    star = _centres(_Images(hashes[order[unique]], radius, colours[order[unique]], tolerance))
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


@dataclass(frozen=True)
class _Images:
    """What is compared: rows from the best to the worst, `hashes` (n,) and `colours` (n, w)."""

    hashes: Hashes
    radius: int  # [bits]
    colours: Colours
    tolerance: int  # [levels]

    def near(self, first: Rows, second: Rows, earlier: list[np.uint64]) -> Rows:
        """Return which pairs (m,), (m,) of rows are near and agree under no `earlier` mask."""
        differing = self.hashes[first] ^ self.hashes[second]
        close = np.flatnonzero(np.bitwise_count(differing) <= self.radius)
        for mask in earlier:
            close = close[(differing[close] & mask) != 0]
        near = [close[:0]]
        for start in range(0, len(close), _CHUNK):
            chunk = close[start : start + _CHUNK]
            a = self.colours.take(first[chunk], axis=0)  # much faster than `colours[rows]`
            b = self.colours.take(second[chunk], axis=0)
            same = (np.maximum(a, b) - np.minimum(a, b) <= self.tolerance).all(axis=1)
            near.append(chunk[same])
        return np.concatenate(near)


def _centres(images: _Images) -> Rows:
    """Return each row's centre (n,): the first centre near it, or itself.

    In rounds, since the pairs of a large cluster are too many to list. A round lists those of the
    first rows of each cluster, which settles which of these are centres; then each centre takes
    what is near it, so that few rows of a large cluster come to the next round.
    """
    count = len(images.hashes)
    centre = np.full(count, count, dtype=np.int64)  # `count`: none yet
    free = np.arange(count)
    waiting = np.zeros(0, dtype=np.int64)  # taken, but maybe near a better centre still to come
    while len(free):
        pairs, unsure = _near_pairs(free, images)
        star, unsure = _stars(len(free), pairs, unsure)
        taken = star != np.arange(len(free))
        centre[free] = np.where(unsure & ~taken, count, free[star])
        rest = np.concatenate([waiting, free[unsure]])
        _take(free[~unsure & ~taken], rest, centre, images)
        free = free[unsure]
        free = free[centre[free] == count]
        # No centre to come is better than the first free row.
        waiting = rest[(centre[rest] < count) & (centre[rest] > free.min(initial=count))]
    return centre


def _near_pairs(rows: Rows, images: _Images) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Return distinct near pairs (m, 2) among `rows` (r,), and of which rows pairs may be missing.

    Pairs are places in `rows`, which ascend; smaller first, sorted by the smaller. All pairs of a
    row with better rows are there, unless the row is marked as `missed` (r,). The first row never
    is. m is linear in r.
    """
    hashes = images.hashes[rows]
    found = [np.zeros((0, 2), dtype=np.int64)]
    missed = np.zeros(len(rows), dtype=bool)
    masks = list(_masks(images.radius, len(rows)))
    for number, mask in enumerate(masks):
        by_key = np.argsort(hashes & mask, kind="stable")
        ordered = hashes[by_key]
        start = _starts(ordered & mask)
        size = np.diff(start, append=len(rows))
        stop, room, run = size.copy(), _CLOSE_PER_ROW * size, np.arange(len(start))
        # In each run of equal keys, compare the second row, the third, … with all before it.
        for place in itertools.count(1):
            run = run[size[run] > place]
            crowded = room[run] < 0
            stop[run[crowded]] = place
            run = run[~crowded]
            if not len(run):
                break
            row, before = start[run] + place, start[run, None] + np.arange(place)
            differing = ordered[row][:, None] ^ ordered[before]
            which, close = np.nonzero(np.bitwise_count(differing) <= images.radius)
            room[run] -= place * _FAR_PAIR + np.bincount(which, minlength=len(run))
            first, second = by_key[before[which, close]], by_key[row[which]]
            near = images.near(rows[first], rows[second], masks[:number])
            found.append(np.stack([first[near], second[near]], axis=1))
        beyond = np.arange(len(rows)) - np.repeat(start, size) >= np.repeat(stop, size)
        missed[by_key[beyond]] = True
    pairs = np.concatenate(found)
    return pairs[np.argsort(pairs[:, 0], kind="stable")], missed


def _starts(ordered: Hashes) -> Rows:
    """Return where runs of equal values start in (n,) of them."""
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return np.flatnonzero(new)


def _take(centres: Rows, rows: Rows, centre: Rows, images: _Images) -> None:
    """Give `rows` (r,) to the new `centres` (c,), ascending, if near and better than theirs.

    `centre` (n,) is changed in place. A row has only centres that come before it.
    """
    masks = list(_masks(images.radius, len(centres) + len(rows))) if len(rows) else []
    for number, mask in enumerate(masks):
        keys = images.hashes[centres] & mask
        by_key = np.argsort(keys, kind="stable")
        keys, sought = keys[by_key], images.hashes[rows] & mask
        place = np.searchsorted(keys, sought)
        end = np.searchsorted(keys, sought, side="right")
        # Compare each row with the first, the second, … centre of its key.
        left = rows
        while True:
            more = place < end
            left, place, end = left[more], place[more], end[more]
            other = centres[by_key[place]]
            better = other < np.minimum(centre[left], left)
            left, place, end, other = left[better], place[better], end[better], other[better]
            if not len(left):
                break
            near = images.near(other, left, masks[:number])
            centre[left[near]] = other[near]
            place += 1


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
    return _stars(count, pairs, np.zeros(count, dtype=bool))[0]


def _stars(
    count: int, pairs: Rows, missed: npt.NDArray[np.bool_]
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Return each row's centre (n,) so far, and whether it is unsure (n,).

    Unsure are the rows of which better neighbours may be missing among `pairs`, `missed` (n,), and
    the neighbours of an unsure row that may be a centre, unless a better centre has them.
    """
    centre = np.full(count, -1, dtype=np.int64)
    unsure = missed.copy()
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    for start, end in itertools.pairwise([*starts.tolist(), len(pairs)]):
        row = pairs[start, 0]
        if centre[row] < 0:
            near = pairs[start:end, 1]
            near = near[centre[near] < 0]
            if unsure[row]:
                unsure[near] = True
            else:
                centre[near] = row
    return np.where(centre < 0, np.arange(count), centre), unsure
