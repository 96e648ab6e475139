"""Semantic duplicates: different photographs of the same thing, told from image embeddings.

SemDeDup (Abbas et al. 2023, arXiv 2303.09540): cluster the embeddings with k-means, then compare
pairs inside clusters only. Two differences. Flat k-means with clusters of a fixed size costs n²;
here big clusters are split again and again into a few, so cost grows as n log n. And of near pairs
the preferred image stays (`duplicates.preference_order`), not the one farthest from the centroid.
Pairs that a cluster's border parts are missed, as in the paper.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.filters.duplicates import stars
from pipeline.filters.keys import mixed

Embeddings = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]

_BRANCHES: Final = 16  # clusters that a cluster is split into
_ROUNDS: Final = 8  # of k-means
_SAMPLED: Final = 256  # points per centroid that k-means looks at
_CHUNK: Final = 65_536  # rows converted to float32 at a time


def semantic_duplicates(
    embeddings: Embeddings, threshold: float, *, cluster_size: int = 1000, seed: int = 0
) -> Rows:
    """Return for each row (n,) the row it is a copy of: its own number for rows to keep.

    `embeddings` (n, D) float16, L2-normalised, rows by preference, best first. A row is a copy when
    the cosine with the row kept is at least `threshold` (at float32's precision). Deterministic for
    one BLAS thread. Memory: 2 n D bytes for the embeddings, 4 `cluster_size`² for a cluster.
    """
    labels = np.arange(len(embeddings))
    waiting = [labels.copy()]
    while waiting:
        rows = waiting.pop()
        if len(rows) > cluster_size:
            waiting += _split(embeddings, rows, cluster_size, seed)
            continue
        points = embeddings[rows].astype(np.float32)
        near = np.triu(points @ points.T >= threshold, k=1)
        pairs = np.argwhere(near)
        if len(pairs):
            labels[rows] = rows[stars(len(rows), pairs)]
    return labels


def _split(embeddings: Embeddings, rows: Rows, size: int, seed: int) -> list[Rows]:
    """Return the rows of a cluster as smaller clusters, each in the order given."""
    count = min(_BRANCHES, -(-len(rows) // size))
    draws = mixed(seed, len(rows), rows.astype(np.uint64))
    sample = rows[np.argsort(draws, kind="stable")[: _SAMPLED * count]]
    centroids = _centroids(embeddings[sample].astype(np.float32), count)
    chunks = [
        _nearest(embeddings[rows[start : start + _CHUNK]].astype(np.float32), centroids)
        for start in range(0, len(rows), _CHUNK)
    ]
    nearest = np.concatenate(chunks)
    parts = [rows[nearest == number] for number in range(count)]
    if max(map(len, parts)) == len(rows):  # equal points, which no centroid can part
        return [rows[start : start + size] for start in range(0, len(rows), size)]
    return [part for part in parts if len(part)]


def _centroids(points: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """Return `count` unit centroids (k, D) of points (s, D) by spherical k-means."""
    centroids = points[:count].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(points, centroids)
        for number in range(count):
            own = points[nearest == number]
            if len(own):  # one without points stays where it is
                mean = own.mean(axis=0, dtype=np.float64)
                centroids[number] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return centroids


def _nearest(
    points: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    return np.asarray(np.argmax(points @ centroids.T, axis=1), dtype=np.int64)
