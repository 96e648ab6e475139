"""Histograms of any number of values in constant memory, re-binned for drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# A number is counted under the upper 16 bits of its float32 (its bfloat16): 8 bits of precision at
# any size, integers to 256 exactly, and one array of 65,536 counters whatever comes.
_KEYS = 1 << 16
# Shares and scores lie in [0, 1] and cluster at round values: equal steps that hold those exactly.
_UNIT_STEPS = 1000


@dataclass
class Histogram:
    """Counts of values; `unit` for values in [0, 1] (kept to 0.001), else any finite numbers.

    Null and non-finite values are counted as `missing`.
    """

    unit: bool = False
    missing: int = 0
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(_UNIT_STEPS + 1 if self.unit else _KEYS, dtype=np.int64)

    def add(self, values: Floats) -> None:
        """Count values (n,), NaN for null."""
        finite = values[np.isfinite(values)]
        self.missing += len(values) - len(finite)
        if len(finite):
            self.counts += np.bincount(self._keys(finite), minlength=len(self.counts))

    def _keys(self, values: Floats) -> npt.NDArray[np.int64]:
        if self.unit:
            steps = np.floor(np.clip(values, 0, 1) * _UNIT_STEPS + 1e-4)
            return steps.astype(np.int64)
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16
        return bits.astype(np.int64)

    @property
    def total(self) -> int:
        """Return how many finite values were counted."""
        return int(self.counts.sum())

    def distinct(self) -> tuple[Floats, Counts]:
        """Return the (rounded) values that occurred, ascending (k,), and their counts (k,)."""
        keys = np.flatnonzero(self.counts)
        if self.unit:
            values = keys / _UNIT_STEPS
        else:
            bits = keys.astype(np.uint32) << np.uint32(16)
            values = bits.view(np.float32).astype(np.float64)
        order = np.argsort(values, kind="stable")
        return values[order], self.counts[keys][order]

    def quantile(self, share: float) -> float:
        """Return the smallest value that at least `share` of the values do not exceed."""
        values, counts = self.distinct()
        if not len(values):
            return math.nan
        place = int(np.searchsorted(np.cumsum(counts), share * counts.sum() - 1e-9))
        return float(values[min(place, len(values) - 1)])


@dataclass(frozen=True)
class Bins:
    """Bins to draw: bar i holds `counts[i]` values in [`edges[i]`, `edges[i + 1]`).

    The outermost bars also hold what lies beyond `edges`.
    """

    edges: Floats
    counts: Counts
    logarithmic: bool

    def of(self, histogram: Histogram) -> Bins:
        """Return another histogram's counts in the same bins."""
        values, counts = histogram.distinct()
        places = np.searchsorted(self.edges, values + 1e-9 * np.abs(values), side="right") - 1
        places = np.clip(places, 0, len(self.edges) - 2)
        summed = np.bincount(places, weights=counts, minlength=len(self.edges) - 1)
        return Bins(self.edges, summed.astype(np.int64), self.logarithmic)


def bins(histogram: Histogram, wanted: int = 40, include: tuple[float, ...] = ()) -> Bins | None:
    """Return at most `wanted` bins that show the bulk of a histogram; None if it is empty.

    The axis spans 99% of the values and those numbers of `include` (thresholds) that lie less than
    its length away; it is logarithmic where the upper half alone spans more than a factor of ten.
    Whole numbers get bins of whole numbers.
    """
    values, _ = histogram.distinct()
    if not len(values):
        return None
    if histogram.unit:
        low, high = 0.0, 1.0
    else:
        low, high = histogram.quantile(0.005), histogram.quantile(0.995)
        length = high - low if high > low else abs(high)
        near = [value for value in include if low - length <= value <= high + length]
        low, high = min([low, *near]), max([high, *near])
    whole = not histogram.unit and bool(np.all(values == np.round(values)))
    median = histogram.quantile(0.5)
    logarithmic = not histogram.unit and low > 0 and high / max(median, 1e-12) > 10
    edges = _edges(low, high, wanted, whole, logarithmic)
    empty = Bins(edges, np.zeros(len(edges) - 1, dtype=np.int64), logarithmic)
    return empty.of(histogram)


def _edges(low: float, high: float, wanted: int, whole: bool, logarithmic: bool) -> Floats:
    if logarithmic and high > low:
        return np.geomspace(low, high * 1.0001, wanted + 1)
    if whole:
        step = max(1.0, math.ceil((high - low + 1) / wanted))
        return np.arange(math.floor(low), high + 1 + step, step, dtype=np.float64)
    if high <= low:  # one value only: a bar around it
        pad = max(abs(low) * 0.05, 0.5)
        return np.linspace(low - pad, low + pad, 4)
    return np.linspace(low, high, wanted + 1)


__all__ = ["Bins", "Histogram", "bins"]
