"""`quality`: the scores of one caption combined into one number."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.scorers.config import QualityConfig


def quality_score(scores: Mapping[str, float | None], config: QualityConfig) -> float | None:
    """Return the weighted geometric mean of a caption's scores, or None if none was computed.

    quality = exp(Σ w_i ln s_i / Σ w_i) over the scores that are not null and have a weight. The
    geometric mean, not the arithmetic one, because a caption of another image (alignment near 0)
    or in another language stays bad however well it is worded: a score of 0 makes quality 0.

    `scores` maps score names of `pipeline.schema.SCORES` to values in [0, 1]; an entry `quality`
    is ignored. The result lies between the smallest and the largest score that counts, rounded to
    4 decimals. Raises `ValueError` for a score outside [0, 1].
    """
    total, log_sum = 0.0, 0.0
    for name, weight in config.weights().items():
        value = scores.get(name)
        if value is None or weight == 0:
            continue
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"score {name} is {value}, outside [0, 1]")
        if value == 0.0:
            return 0.0
        total += weight
        log_sum += weight * math.log(value)
    return round(math.exp(log_sum / total), 4) if total else None
