"""What `alignment: linear` keeps of a part: sums over its pairs, and a few pairs to calibrate on.

Sums are kept per fold, so that the model of a fold is fitted on the total minus that fold: an
image's own captions never vouch for themselves.

Dimensions: n images, m captions, F image features, T text features, K folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.alignment_text import text_features
from pipeline.scorers.config import LinearAlignmentConfig

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: Pairs kept for calibration, over the whole run; those of the lowest uid hashes.
SAMPLE_PAIRS: Final = 1024

_CHUNK: Final = 2048  # captions whose features are held in memory at once


@dataclass
class AlignmentStatistics:
    """Sums over caption-image pairs and a sample of pairs; `a += b` joins two parts.

    `count` (K,) captions; `image_sum` (K, F); `text_sum` (K, T); `image_image` (K, F, F),
    `image_text` (K, F, T), `text_text` (K, T, T) sums of products, float64. Per kept pair:
    `sample_key` (s,) uint64 hash of the uid, ascending; `sample_fold` (s,); `sample_image` (s, F)
    and `sample_text` (s, T) float32. Memory is 8·K·(F² + F·T + T²) bytes.
    """

    count: Doubles
    image_sum: Doubles
    text_sum: Doubles
    image_image: Doubles
    image_text: Doubles
    text_text: Doubles
    sample_key: NDArray[np.uint64]
    sample_fold: NDArray[np.int64]
    sample_image: Floats
    sample_text: Floats

    def __iadd__(self, other: AlignmentStatistics) -> AlignmentStatistics:
        for name in _SUMS:
            getattr(self, name)[...] += getattr(other, name)
        key = np.concatenate([self.sample_key, other.sample_key])
        kept = np.argsort(key, kind="stable")[:SAMPLE_PAIRS]
        for name in _SAMPLES:
            joined = np.concatenate([getattr(self, name), getattr(other, name)])
            setattr(self, name, joined[kept])
        return self


_SUMS: Final = ("count", "image_sum", "text_sum", "image_image", "image_text", "text_text")
_SAMPLES: Final = ("sample_key", "sample_fold", "sample_image", "sample_text")


def accumulate(
    images: Floats,
    texts: Sequence[str],
    owner: Sequence[int] | NDArray[np.int64],
    uids: Sequence[str],
    config: LinearAlignmentConfig,
) -> AlignmentStatistics:
    """Return the statistics of one part.

    `images` (n, F) from `image_features`, rows of NaN are skipped; `texts` m captions; `owner` (m,)
    the row of each caption's image; `uids` n. Captions without a content word are skipped. Every
    caption is one pair, so an image with several captions counts as often.
    """
    owner = np.asarray(owner, np.int64)
    folds, keys = folds_of(uids, config.folds), np.array([key_of(uid) for uid in uids], np.uint64)
    sums = _empty(images.shape[1], config)
    sound = np.asarray(np.isfinite(images).all(axis=1))
    chosen: dict[int, tuple[int, Floats]] = {}
    # Captions in the order of their images: an image's captions are summed before the products,
    # which then cost as much for many captions as for one.
    order = np.argsort(owner, kind="stable")
    for places in _chunks(owner[order]):
        numbers = order[places]
        some = [texts[number] for number in numbers]
        text = text_features(some, config.text_width)
        use = sound[owner[numbers]] & np.asarray(text.any(axis=1))
        _add(sums, images, text[use], owner[numbers[use]], folds)
        for position in np.flatnonzero(use):
            row, caption = int(owner[numbers[position]]), some[position]
            rank = key_of(f"{uids[row]}/{caption}")
            if row not in chosen or rank < chosen[row][0]:
                chosen[row] = (rank, text[position].copy())
    kept = sorted(chosen, key=lambda row: int(keys[row]))[:SAMPLE_PAIRS]
    if kept:
        sums.sample_key, sums.sample_fold = keys[kept], folds[kept]
        sums.sample_image = images[kept].astype(np.float32)
        sums.sample_text = np.stack([chosen[row][1] for row in kept])
    return sums


def _chunks(owners: NDArray[np.int64]) -> Iterator[slice]:
    """Yield slices of about `_CHUNK` captions that do not part an image's captions."""
    start = 0
    while start < len(owners):
        stop = min(start + _CHUNK, len(owners))
        while stop < len(owners) and owners[stop] == owners[stop - 1]:
            stop += 1
        yield slice(start, stop)
        start = stop


def _add(
    sums: AlignmentStatistics,
    images: Floats,
    text: Floats,
    owner: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> None:
    """Add pairs to the sums; `owner` (m,) ascending is the row of each of the captions' images."""
    for fold in np.unique(folds[owner]):
        mine = folds[owner] == fold
        rows, first, count = np.unique(owner[mine], return_index=True, return_counts=True)
        # Products of one chunk in float32, twice as fast; the sums of millions of pairs in float64.
        x, y = images[rows].astype(np.float32), text[mine]
        # A matrix times itself transposed costs half.
        weighted = x * np.sqrt(count, dtype=np.float32)[:, None]
        sums.count[fold] += len(y)
        sums.image_sum[fold] += count @ x.astype(np.float64)
        sums.text_sum[fold] += y.sum(0, dtype=np.float64)
        sums.image_image[fold] += weighted.T @ weighted
        sums.image_text[fold] += x.T @ np.add.reduceat(y, first, axis=0)
        sums.text_text[fold] += y.T @ y


def folds_of(uids: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Return the fold of each image, (n,) int64 in [0, folds): a function of its uid alone."""
    # Bits that the sample's order does not use: each fold gets its share of the sample.
    return np.array([(key_of(uid) & 0xFFFF) % folds for uid in uids], np.int64)


def key_of(text: str) -> int:
    """Return 64 bits of a text's hash: what images are drawn by, and their folds."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _empty(width: int, config: LinearAlignmentConfig) -> AlignmentStatistics:
    K, F, T = config.folds, width, config.text_width
    return AlignmentStatistics(
        count=np.zeros(K),
        image_sum=np.zeros((K, F)),
        text_sum=np.zeros((K, T)),
        image_image=np.zeros((K, F, F)),
        image_text=np.zeros((K, F, T)),
        text_text=np.zeros((K, T, T)),
        sample_key=np.zeros(0, np.uint64),
        sample_fold=np.zeros(0, np.int64),
        sample_image=np.zeros((0, F), np.float32),
        sample_text=np.zeros((0, T), np.float32),
    )
