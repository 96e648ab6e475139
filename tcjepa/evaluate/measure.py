"""Numbers with two standard errors, because they answer two questions.

`seed_error` is the spread over probe seeds (initial weights, minibatch order, validation split)
divided by the square root of their number: how far the mean would move if the *probe* were run
again on the same features. It says nothing about the finite test set, nor about training the
*encoder* again: for that, train several encoders and compare their results.

`sampling_error` is what another test set of the same size would change. Linear probes are convex,
so their seed error is often close to zero while the sampling error is not; `error` is the larger
of the two, and comparisons use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A share in [0, 1] with its standard errors, in the same unit; None where not defined."""

    value: float
    seed_error: float | None
    sampling_error: float
    per_seed: tuple[float, ...]

    @property
    def error(self) -> float:
        """The larger of the two standard errors."""
        return max(self.seed_error or 0.0, self.sampling_error)

    @classmethod
    def over_seeds(cls, values: Sequence[float], sampling_error: float) -> Measure:
        """Return the mean of one value per seed; one seed leaves its error undefined.

        Raises `ValueError` where there is no value.
        """
        if not values:
            raise ValueError("no seed, no measure")
        mean = math.fsum(values) / len(values)
        seed_error = None
        if len(values) > 1:
            variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
            seed_error = math.sqrt(variance / len(values))
        return cls(mean, seed_error, sampling_error, tuple(values))

    @classmethod
    def accuracy(cls, values: Sequence[float], tested: int) -> Measure:
        """Return the mean of one accuracy per seed, each over the same `tested` test images."""
        mean = math.fsum(values) / max(len(values), 1)
        return cls.over_seeds(values, binomial_error(mean, tested))


def binomial_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` independent trials.

    The variance is taken at Laplace's estimate (x + 1) / (n + 2), so that 100% right on a finite
    test set does not claim to be exact. Raises `ValueError` unless `count` is positive.
    """
    if count < 1:
        raise ValueError(f"a share of {count} test images has no standard error")
    smoothed = (share * count + 1) / (count + 2)
    return math.sqrt(smoothed * (1 - smoothed) / count)


__all__ = ["Measure", "binomial_error"]
