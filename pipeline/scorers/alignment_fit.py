"""Fitting `alignment: linear` from sufficient statistics (the model is in `alignment`).

Cross-fitted twice over: directions of a fold come from the other folds, and so do the correlations
and scales that weigh them, which are measured on images that the measured model did not see.

Dimensions: F image features, T text features, K folds, r components.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipeline.scorers.alignment import (
    LinearAlignment,
    all_pairs_information,
    project_pairs,
)
from pipeline.scorers.alignment_odds import tilt
from pipeline.scorers.alignment_statistics import AlignmentStatistics, Doubles
from pipeline.scorers.config import LinearAlignmentConfig

#: Pairs below which there is nothing to learn from.
MIN_PAIRS: Final = 64

#: Ridges tried, as shares of the mean variance of a feature: (image, text).
_RIDGES: Final = ((0.3, 0.3), (0.3, 1.0), (1.0, 1.0), (1.0, 3.0), (3.0, 3.0), (3.0, 10.0))
_LARGEST_CORRELATION: Final = 0.98


def fit(
    parts: Iterable[AlignmentStatistics], config: LinearAlignmentConfig
) -> LinearAlignment | None:
    """Fit the model on the statistics of all parts, given in part order.

    Returns None if the run has fewer than `MIN_PAIRS` pairs or a fold has none: then there is no
    alignment score. The first of `parts` is used up as the running sum; pass a generator to hold
    only two parts in memory. Deterministic for one BLAS thread.
    """
    total: AlignmentStatistics | None = None
    for part in parts:
        if total is None:
            total = part
        else:
            total += part
    if total is None or total.count.sum() < MIN_PAIRS or not total.count.all():
        return None
    moments, directions = _fit_folds(total, config)
    reached = [_held_out(held, *maps) for (_, held), maps in zip(moments, directions, strict=True)]
    models = []
    for fold, ((train, _), (A, B)) in enumerate(zip(moments, directions, strict=True)):
        others = [reached[other] for other in range(config.folds) if other != fold]
        scale_u, scale_v, rho = (np.mean(values, axis=0) for values in zip(*others, strict=True))
        models.append((train.x, A / scale_u, train.y, B / scale_v, _decreasing(rho)))
    image_mean, image_map, text_mean, text_map, correlation = (
        np.stack(values) for values in zip(*models, strict=True)
    )
    raw = LinearAlignment(
        image_mean, image_map, text_mean, text_map, correlation, np.array([1.0, 0.0])
    )
    return replace(raw, calibration=_calibrate(raw, total))


def _fit_folds(
    total: AlignmentStatistics, config: LinearAlignmentConfig
) -> tuple[list[tuple[_Moments, _Moments]], list[tuple[Doubles, Doubles]]]:
    """Return each fold's moments and its directions, with the ridges that fold 0 likes best.

    Folds have a thread each, on a core that waits for this stage anyway; what a fold computes does
    not depend on the others.
    """
    moments = [_moments(total, fold) for fold in range(config.folds)]
    with ThreadPoolExecutor(min(config.folds, os.cpu_count() or 1)) as pool:
        spectra = list(pool.map(lambda pair: _Spectra(pair[0]), moments))
        tried = list(pool.map(lambda ridges: spectra[0].solve(ridges, config), _RIDGES))
        quality = list(pool.map(lambda maps: _rank_quality(total, moments[0], maps), tried))
        best = quality.index(max(quality))
        others = pool.map(lambda one: one.solve(_RIDGES[best], config), spectra[1:])
        return moments, [tried[best], *others]


@dataclass(frozen=True)
class _Moments:
    """Means (F,), (T,) and covariances (F, F), (F, T), (T, T) of some folds."""

    x: Doubles
    y: Doubles
    xx: Doubles
    xy: Doubles
    yy: Doubles


def _moments(total: AlignmentStatistics, fold: int) -> tuple[_Moments, _Moments]:
    """Return the moments of all other folds, to fit on, and of this fold, to check on."""
    others = [other for other in range(len(total.count)) if other != fold]
    return _some_moments(total, others), _some_moments(total, [fold])


def _some_moments(total: AlignmentStatistics, use: Sequence[int]) -> _Moments:
    def mean(sums: Doubles) -> Doubles:
        added: Doubles = sums[use[0]].copy()
        for fold in use[1:]:
            added += sums[fold]
        added /= total.count[use].sum()
        return added

    x, y = mean(total.image_sum), mean(total.text_sum)
    xx, xy, yy = mean(total.image_image), mean(total.image_text), mean(total.text_text)
    xx -= np.outer(x, x)
    xy -= np.outer(x, y)
    yy -= np.outer(y, y)
    return _Moments(x, y, xx, xy, yy)


class _Spectra:
    """Eigenvectors of both covariances, kept so that each ridge costs one small SVD."""

    def __init__(self, train: _Moments) -> None:
        # Image features have no common unit, so they are standardised; word counts have one.
        variance = np.maximum(np.diag(train.xx), 0)
        self.unit = np.divide(
            1, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 1e-9
        )
        self.x_values, self.x_vectors = np.linalg.eigh(train.xx * np.outer(self.unit, self.unit))
        self.y_values, self.y_vectors = np.linalg.eigh(train.yy)
        self.cross = self.x_vectors.T @ (train.xy * self.unit[:, None]) @ self.y_vectors

    def solve(
        self, ridges: tuple[float, float], config: LinearAlignmentConfig
    ) -> tuple[Doubles, Doubles]:
        """Return the leading canonical directions A (F, r) and B (T, r)."""
        x_scale, y_scale = (
            1 / np.sqrt(np.maximum(values, 0) + ridge * max(float(values.mean()), 1e-12))
            for values, ridge in zip((self.x_values, self.y_values), ridges, strict=True)
        )
        left, right = _singular_vectors(self.cross * np.outer(x_scale, y_scale))
        r = min(config.components, left.shape[1])
        A = self.unit[:, None] * (self.x_vectors @ (x_scale[:, None] * left[:, :r]))
        return A, self.y_vectors @ (y_scale[:, None] * right[:r].T)


def _singular_vectors(matrix: Doubles) -> tuple[Doubles, Doubles]:
    """Return left (F, k) and right (k, T) singular vectors, in the order of singular values.

    From the eigenvectors of the smaller product of the matrix with itself: three times faster than
    an SVD, which also gives up on some matrices of low rank. Squared, singular values lose digits
    that only directions of no correlation have.
    """
    if matrix.shape[0] < matrix.shape[1]:
        left, right = _singular_vectors(matrix.T)
        return right.T, left.T
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    right = vectors[:, ::-1]
    left = matrix @ right / np.sqrt(np.maximum(values[::-1], 1e-24))
    return left, right.T


def _held_out(held: _Moments, A: Doubles, B: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return scales of u and of v and their correlations, (r,) each, on pairs not fitted on."""
    scale_u = np.sqrt(np.maximum(np.einsum("fr,fr->r", A, held.xx @ A), 1e-12))
    scale_v = np.sqrt(np.maximum(np.einsum("tr,tr->r", B, held.yy @ B), 1e-12))
    return scale_u, scale_v, np.einsum("fr,fr->r", A, held.xy @ B) / (scale_u * scale_v)


def _decreasing(rho: Doubles) -> Doubles:
    """Return the nearest non-increasing sequence (pool adjacent violators), in [0, 0.98].

    Components come in the order of their fitted correlations, so what rises again is noise.
    """
    blocks: list[tuple[float, int]] = []
    for value in rho:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] < mean:
            before, length = blocks.pop()
            mean, size = (before * length + mean * size) / (length + size), length + size
        blocks.append((mean, size))
    means, sizes = zip(*blocks, strict=True)
    pooled: Doubles = np.clip(np.repeat(means, sizes), 0, _LARGEST_CORRELATION)
    return pooled


def _rank_quality(
    total: AlignmentStatistics,
    moments: tuple[_Moments, _Moments],
    directions: tuple[Doubles, Doubles],
) -> float:
    """Return how often a held-out pair of fold 0 beats the same image with another's caption."""
    train, held = moments
    mine = total.sample_fold == 0
    if mine.sum() < 2:
        return 0.0
    A, B = directions
    scale_u, scale_v, rho = _held_out(held, A, B)
    u = (total.sample_image[mine] - train.x) @ (A / scale_u)
    v = (total.sample_text[mine] - train.y) @ (B / scale_v)
    information = all_pairs_information(_decreasing(rho), u, v)
    right = np.diag(information)
    return float((right[:, None] > information).mean() + (right > information).mean())


def _calibrate(model: LinearAlignment, total: AlignmentStatistics) -> Doubles:
    """Return a, b such that σ(a s + b) is the probability that a caption is of its image."""
    right, wrong = [], []
    for fold in range(len(model.correlation)):
        mine = total.sample_fold == fold
        if mine.sum() < 2:
            continue
        u, v = project_pairs(model, fold, total.sample_image[mine], total.sample_text[mine])
        information = all_pairs_information(model.correlation[fold], u, v)
        right.append(np.diag(information))
        wrong.append(information[~np.eye(len(information), dtype=bool)])
    if not right:
        return np.array([1.0, 0.0])
    return np.array(tilt(np.concatenate(right), np.concatenate(wrong)))
