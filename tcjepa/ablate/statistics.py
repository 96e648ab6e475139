"""Means over seeds, slopes over noise, and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Two-sided 95% quantiles of Student's t by degrees of freedom; beyond the table, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.960


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its 95% confidence interval; None where n < 2 gives none."""

    value: float
    half_width: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval."""
        if self.half_width is None:
            return None
        return self.value - self.half_width, self.value + self.half_width


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with Student's 95% interval.

    With two seeds the interval is 12.7 standard errors wide each way: that is what two seeds tell.
    Raises `ValueError` without values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to average")
    centre = math.fsum(values) / n
    if n == 1:
        return Estimate(centre, None, 1)
    variance = math.fsum((v - centre) ** 2 for v in values) / (n - 1)
    return Estimate(centre, t95(n - 1) * math.sqrt(variance / n), n)


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Return the least-squares slope of y over x with its 95% interval; None for fewer than 3.

    Every (x, y) is one training run, so seeds enter as they are and not as means.
    """
    n = len(x)
    if n < 3 or len(set(x)) < 2:
        return None
    x_mean, y_mean = math.fsum(x) / n, math.fsum(y) / n
    spread = math.fsum((a - x_mean) ** 2 for a in x)
    value = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    residual = math.fsum(
        (b - y_mean - value * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True)
    )
    return Estimate(value, t95(n - 2) * math.sqrt(residual / (n - 2) / spread), n)


def t95(degrees: int) -> float:
    """Return Student's two-sided 95% quantile."""
    return _T95[degrees - 1] if degrees <= len(_T95) else _NORMAL95
