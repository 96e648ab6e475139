"""Intervals over seeds, and what they say.

Two 95% intervals stand beside each other in a report. The percentile bootstrap (Efron & Tibshirani
1993, section 13.3) draws training seeds and test images again; with S seeds it sees only
(S - 1) / S of their variance and none of their tails, so where seeds are all that varies, three of
them cover the truth 75 times in 100 and eight 88 times, not 95. Student's t over the seeds allows
for that, at the price of 4.3 standard errors each way with three; it takes seeds as normal and
knows of the test images only what differs between seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Floats = NDArray[np.floating[Any]]

#: Two-sided 95% quantiles of Student's t by degrees of freedom, and of the normal.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.959964


def t95(degrees: int) -> float:
    """Return Student's two-sided 95% quantile.

    Beyond the table by its series in 1 / degrees (Abramowitz & Stegun 1964, 26.7.5), right to five
    decimals.
    """
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    z, n = _NORMAL95, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean; raises `ValueError` without values."""
    if not values:
        raise ValueError("no values to average")
    return math.fsum(values) / len(values)


def student(values: Sequence[float]) -> Interval | None:
    """Return Student's 95% interval of the mean of independent values; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    centre = mean(values)
    half = t95(n - 1) * math.sqrt(_covariance(values, values) / n)
    return centre - half, centre + half


def fieller(numerators: Sequence[float], denominators: Sequence[float]) -> Interval | None:
    """Return the 95% interval of a ratio of means of pairs, by Fieller's theorem (1954).

    It holds the ratios θ for which Student's interval of the mean of n - θ·d has 0 in it. None
    where they are not an interval: Student's interval of the denominators has 0 in it, or there
    are fewer than two pairs.
    """
    n = len(numerators)
    if n < 2:
        return None
    above, below = mean(numerators), mean(denominators)
    scale = t95(n - 1) ** 2 / n
    # The ends solve a·θ² - 2·b·θ + c = 0.
    a = below**2 - scale * _covariance(denominators, denominators)
    b = above * below - scale * _covariance(numerators, denominators)
    c = above**2 - scale * _covariance(numerators, numerators)
    if a <= 0:
        return None
    half = math.sqrt(max(b * b - a * c, 0.0))
    return (b - half) / a, (b + half) / a


def percentile(replicates: Floats) -> Interval | None:
    """Return the interval from the 2.5% to the 97.5% quantile of bootstrap replicates (R,).

    Replicates that are nan, such as an IoU of classes that none of the drawn images has, are left
    out; None if all are.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def slope_coefficients(x: Sequence[float]) -> list[float]:
    """Return c such that Σ c·y is the least-squares slope of y over x.

    Raises `ValueError` for fewer than two different x.
    """
    centre = mean(x)
    spread = math.fsum((a - centre) ** 2 for a in x)
    if not spread:
        raise ValueError("a slope needs two different x")
    return [(a - centre) / spread for a in x]


def has_zero(interval: Interval | None) -> bool:
    """Return whether 0 lies in an interval; nothing is known without one, so then too."""
    return interval is None or interval[0] <= 0 <= interval[1]


def _covariance(a: Sequence[float], b: Sequence[float]) -> float:
    first, second = mean(a), mean(b)
    products = ((x - first) * (y - second) for x, y in zip(a, b, strict=True))
    return math.fsum(products) / (len(a) - 1)


__all__ = [
    "Interval",
    "fieller",
    "has_zero",
    "mean",
    "percentile",
    "slope_coefficients",
    "student",
    "t95",
]
