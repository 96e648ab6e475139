"""Which captions of an image are shown in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import Caption
from tcjepa import keyed
from tcjepa.data.config import DataConfig

_ZERO: Final = 1e-9  # a quality that counts as none
_NEVER: Final = 1e12  # later than any clock of a larger rate: draws end 2⁻⁵³ below 1


def eligible(captions: Sequence[Caption], config: DataConfig) -> list[int]:
    """Return the numbers of the captions that `caption_sources` and the score thresholds admit.

    A caption without a score is admitted: nobody judged it.
    """
    sources = config.caption_sources
    least = {"quality": config.min_caption_quality, "agreement": config.min_caption_agreement}
    asked = [(name, value) for name, value in least.items() if value is not None]
    if sources is None and not asked:
        return list(range(len(captions)))
    numbers = []
    for number, caption in enumerate(captions):
        if sources is not None and not any(fnmatchcase(caption["source"], s) for s in sources):
            continue
        scores = ((caption["scores"].get(name), value) for name, value in asked)
        if any(score is not None and score < value for score, value in scores):
            continue
        numbers.append(number)
    return numbers


def choose(
    captions: Sequence[Caption], config: DataConfig, seed: int, epoch: int, uid: str
) -> list[int]:
    """Return the numbers of up to `captions_per_image` captions, drawn without replacement.

    A function of (seed, epoch, uid) alone. Fewer captions asked for are a prefix of more, so runs
    that differ in N are nested. Numbers, not texts, because noise is keyed by them.
    """
    numbers = eligible(captions, config)
    if not numbers or config.captions_per_image == 0:
        return []
    times = keyed.draws(keyed.key("captions", seed, epoch, uid), len(captions))
    if config.caption_sampling == "quality":
        scores = [captions[number]["scores"].get("quality") for number in numbers]
        race = _race(np.array([times[number] for number in numbers]), scores)
        for number, time in zip(numbers, race.tolist(), strict=True):
            times[number] = time
    return sorted(numbers, key=times.__getitem__)[: config.captions_per_image]


def _race(draws: NDArray[np.float64], scores: list[float | None]) -> NDArray[np.float64]:
    """Return arrival times of exponential clocks with the scores as rates.

    The order of arrival is sampling without replacement in proportion to the scores (Efraimidis and
    Spirakis 2006). An unscored caption weighs as much as the mean of the scored; zero comes last.
    """
    known = [score for score in scores if score is not None]
    mean = sum(known) / len(known) if known else 1.0
    weights = np.array([mean if score is None else score for score in scores])
    times = -np.log1p(-draws) / np.maximum(weights, _ZERO)
    # Among captions of weight zero the draw itself decides, after all others.
    return np.where(weights > _ZERO, times, _NEVER * (1 + draws))
