"""Near-identical captions: MinHash signatures (Broder 1997) of their sets of word pairs.

A signature is 64 values of one byte (b-bit minwise hashing, Li and König 2010): the share of equal
values, corrected for chance, estimates the Jaccard similarity of two sets with a standard error of
at most 0.063. Pairs of neighbouring words, not words: "a star left of a ring" is not "a ring left
of a star", and one word changed in ten gives a similarity of 0.64. Made in numpy for a whole part
at once: docs/decisions.md has how that compares with datasketch.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.filters.keys import mixed

Signatures = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

#: Bytes of a signature.
SIGNATURE_BYTES: Final = 64
_CHANCE: Final = 1 / 256  # two bytes agree by chance
_WORD: Final = re.compile(r"\w+")
_SEEDS: Final = mixed(np.arange(2 * SIGNATURE_BYTES, dtype=np.uint64))


def signatures(texts: Sequence[str]) -> Signatures:
    """Return the signatures (n, 64) of captions; case and punctuation do not matter."""
    sets = [_pairs(text) for text in texts]
    starts = np.cumsum([0, *map(len, sets)])[:-1]
    words = (zlib.crc32(word.encode("utf-8", "replace")) for words in sets for word in words)
    hashed = np.fromiter(words, np.uint64)
    made = np.empty((len(texts), SIGNATURE_BYTES), dtype=np.uint8)
    if not len(texts):
        return made
    with np.errstate(over="ignore"):
        for number in range(SIGNATURE_BYTES):
            # Multiply-shift: 64-bit products of odd factors, of which the high bits are random.
            factor, term = _SEEDS[2 * number] | np.uint64(1), _SEEDS[2 * number + 1]
            values = (hashed * factor + term) >> np.uint64(24)
            least = np.minimum.reduceat(values, starts)
            made[:, number] = mixed(least) & np.uint64(255)
    return made


def _pairs(text: str) -> set[str]:
    """Return the pairs of neighbouring words of a text, or its only word; never empty."""
    words = _WORD.findall(text.lower())
    return {f"{first} {second}" for first, second in itertools.pairwise(words)} or {*words, ""}


def similarity(first: Signatures, second: Signatures) -> npt.NDArray[np.float64]:
    """Return the estimated Jaccard similarity (…,) of signatures (…, 64), at most 1."""
    equal = (first == second).mean(axis=-1)
    return np.asarray((equal - _CHANCE) / (1 - _CHANCE), dtype=np.float64)


def near_captions(made: Signatures, threshold: float, groups: Rows | None = None) -> Rows:
    """Return a label (n,) per caption: the number of an earlier caption it repeats, or its own.

    With `groups` (n,), captions of different groups are never near. Locality-sensitive hashing:
    a caption is compared with the first of each of 16 bands of 4 bytes, so time is that of 17
    sorts, whatever the size of a cluster. Two captions of similarity s share a band with
    probability 1 - (1 - s^4)^16: 0.9998 at s = 0.8. Every caption is near to its label, or to one
    that is, so something of each cluster is its own label.
    """
    label = np.arange(len(made))
    if not len(made):
        return label
    bands = np.ascontiguousarray(made).view(np.uint32).T
    apart = np.uint64(0) if groups is None else mixed(groups.astype(np.uint64))
    # The last band is the whole signature: equal captions always find one another.
    for band in (*bands, mixed(*bands)):
        _, first, inverse = np.unique(apart ^ band, return_index=True, return_inverse=True)
        head = first[inverse]
        near = similarity(made, made[head]) >= threshold
        if groups is not None:
            near &= groups == groups[head]
        label = np.where(near, np.minimum(label, head), label)
    while not np.array_equal(label, label[label]):  # an earlier caption may repeat one itself
        label = label[label]
    return label
