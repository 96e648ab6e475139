"""ROC and reliability of a score, from its values on right and on wrong captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def auc(right: Sequence[float] | Doubles, wrong: Sequence[float] | Doubles) -> float | None:
    """Return how often a right caption scores above a wrong one, ties half; None if one is empty.

    The area under the ROC curve (Hanley & McNeil 1982).
    """
    good, bad = np.asarray(right, np.float64), np.sort(np.asarray(wrong, np.float64))
    if not len(good) or not len(bad):
        return None
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / (2 * len(bad)))


def roc(
    right: Sequence[float] | Doubles, wrong: Sequence[float] | Doubles
) -> tuple[list[float], list[float]]:
    """Return (share of wrong captions kept, share of right ones kept) as the threshold falls."""
    good, bad = np.sort(np.asarray(right, np.float64)), np.sort(np.asarray(wrong, np.float64))
    thresholds = np.unique(np.concatenate([good, bad]))[::-1]
    # At most 200 points are drawn.
    thresholds = thresholds[
        np.linspace(0, len(thresholds) - 1, min(len(thresholds), 200)).astype(int)
    ]
    kept = [1 - np.searchsorted(side, thresholds) / len(side) for side in (bad, good)]
    return [0.0, *kept[0].tolist()], [0.0, *kept[1].tolist()]


@dataclass(frozen=True)
class Bin:
    """Captions whose score lies in one bin: mean score, share right, weight (share of all)."""

    score: float
    right: float
    weight: float


def reliability(
    right: Sequence[float], wrong: Sequence[float], even: bool, bins: int = 10
) -> tuple[list[Bin], float]:
    """Return the filled bins of a score in [0, 1] and its expected calibration error.

    ECE is the mean distance between score and share right over bins, by weight (Naeini et al.
    2015). With `even`, right and wrong captions weigh the same in sum, which is what the alignment
    score speaks of; else every caption weighs the same.
    """
    scores = np.concatenate([np.asarray(right, np.float64), np.asarray(wrong, np.float64)])
    truth = np.arange(len(scores)) < len(right)
    weights = np.ones(len(scores))
    if even:
        weights = np.where(truth, 1 / max(len(right), 1), 1 / max(len(wrong), 1))
    places = np.minimum((scores * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        mine = places == place
        weight = float(weights[mine].sum())
        if weight:
            score = float(scores[mine] @ weights[mine]) / weight
            share = float(weights[mine & truth].sum()) / weight
            found.append(Bin(score, share, weight / float(weights.sum())))
    return found, sum(one.weight * abs(one.score - one.right) for one in found)
