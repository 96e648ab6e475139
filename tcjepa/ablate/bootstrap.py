"""Seeds and test images drawn again, the same for all arms.

The test set is one for all seeds and arms, so a replicate draws images once and seeds once: what is
common to two arms falls out of their difference. What is particular to one seed on one image enters
both draws, so the interval errs on the wide side there.

Shapes: R replicates, n images, S seeds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tcjepa.ablate.intervals import Interval, fieller, mean, percentile, student
from tcjepa.evaluate.tally import Tally, ratios

REPLICATES: Final = 2000
SEED: Final = 0
Floats = NDArray[np.floating[Any]]


class ImageDraws:
    """How often each image is drawn in each replicate: multinomial counts (R, n)."""

    def __init__(
        self, images: Iterable[str], replicates: int = REPLICATES, seed: int = SEED
    ) -> None:
        self._row = {image: row for row, image in enumerate(dict.fromkeys(images))}
        count = len(self._row)
        generator = np.random.default_rng([seed, 1])
        drawn = (generator.integers(0, max(count, 1), count) for _ in range(replicates))
        counts = [np.bincount(rows, minlength=count).astype(np.float32) for rows in drawn]
        self._counts = np.stack(counts)
        self._parts: dict[bytes, NDArray[np.float32]] = {}
        self._known: dict[bytes, Floats] = {}

    def values(self, tally: Tally) -> Floats:
        """Return a measure's value (R,) in every replicate; nan where it has none.

        Equal tallies get equal values to the last bit, wherever they stand. Raises `KeyError` for
        an image that is not one of these.
        """
        rows = np.array([self._row[image] for image in tally.images], np.int64)
        key = hashlib.sha256(rows.tobytes() + tally.sums.tobytes()).digest()
        if key not in self._known:
            totals = self._drawn(rows) @ tally.sums.reshape(len(rows), -1)
            self._known[key] = ratios(totals.reshape(-1, *tally.sums.shape[1:]).astype(np.float64))
        return self._known[key]

    def _drawn(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if np.array_equal(rows, np.arange(len(self._row))):
            return self._counts
        key = rows.tobytes()
        if key not in self._parts:
            self._parts[key] = self._counts[:, rows]
        return self._parts[key]


@lru_cache(maxsize=256)
def seed_shares(seeds: tuple[int, ...], replicates: int, seed: int = SEED) -> Floats:
    """Return the share (R, S) of each replicate that each seed has when S are drawn of S."""
    generator = np.random.default_rng([seed, 2, len(seeds)])
    drawn = generator.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), replicates)
    return drawn / len(seeds)


@dataclass(frozen=True)
class Repeated:
    """One measure of one arm by seed: its value, and its values (R,) on drawn images.

    Of a measure that is not taken image by image, the second repeats the first.
    """

    values: dict[int, float]
    replicates: dict[int, Floats]


@dataclass(frozen=True)
class Combined:
    """A linear combination of arms on the seeds (S,) that all have; `replicates` (R, S)."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    replicates: Floats

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return mean(self.values)

    @property
    def drawn(self) -> Floats:
        """The means (R,) over drawn seeds of values on drawn images."""
        shares = seed_shares(self.seeds, len(self.replicates))
        return np.asarray((shares * self.replicates).sum(axis=1))

    @property
    def interval(self) -> Interval | None:
        """The percentile bootstrap's; None where one seed and no images leave nothing to draw."""
        if len(self.seeds) == 1 and not np.ptp(self.replicates):
            return None
        return percentile(self.drawn)

    @property
    def student(self) -> Interval | None:
        """Student's, over seeds."""
        return student(self.values)


def combine(terms: Sequence[tuple[float, str]], arms: Mapping[str, Repeated]) -> Combined | None:
    """Return Σ coefficient · arm on the seeds that all arms have; None if there is no such seed.

    Arms are paired: a seed's initial weights, data order and test images are the same in all.
    """
    if any(name not in arms for _, name in terms):
        return None
    seeds = set.intersection(*(set(arms[name].values) for _, name in terms))
    if not seeds:
        return None
    order = tuple(sorted(seeds))
    values, replicates = [], []
    for seed in order:
        values.append(sum(c * arms[name].values[seed] for c, name in terms))
        replicates.append(sum(c * arms[name].replicates[seed] for c, name in terms))
    return Combined(order, tuple(values), np.stack(replicates, axis=1))


@dataclass(frozen=True)
class Share:
    """A ratio of two combinations with both intervals; all None where it is undefined."""

    value: float | None
    interval: Interval | None
    student: Interval | None
    seeds: int


def share(won: Combined, lost: Combined) -> Share:
    """Return won / lost on the same seeds; undefined where the interval of `lost` reaches 0.

    Also where all of it lies below: then nothing was lost, and what is worse would seem won back.
    And where so many replicates of `lost` are 0 that the share's own interval is not finite. Raises
    `ValueError` if they are of other seeds.
    """
    if won.seeds != lost.seeds:
        raise ValueError(f"seeds {won.seeds} won and seeds {lost.seeds} lost are no pairs")
    undefined = Share(None, None, None, len(lost.seeds))
    if lost.interval is None or lost.interval[0] <= 0:
        return undefined
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = won.drawn / lost.drawn
    # Where nothing was lost the share has no bound; the sign of the ratio would tell of the loss.
    unbounded = np.copysign(np.inf, won.drawn)
    interval = percentile(np.where(lost.drawn > 0, ratios, unbounded))
    if interval is not None and not all(map(math.isfinite, interval)):
        return undefined
    student = fieller(won.values, lost.values)
    return Share(won.value / lost.value, interval, student, len(lost.seeds))


__all__ = [
    "REPLICATES",
    "SEED",
    "Combined",
    "ImageDraws",
    "Repeated",
    "Share",
    "combine",
    "seed_shares",
    "share",
]
