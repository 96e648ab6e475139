"""From evidence that a caption is of its image to the probability that it is."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.scorers.alignment_statistics import Doubles

#: Bound on an exponent, so that `exp` of it is finite.
_LARGEST: Final = 50.0


def tilt(paired: Doubles, deranged: Doubles) -> tuple[float, float]:
    """Return a, b such that σ(a s + b) is the probability that a caption of evidence s is right.

    The run's pairs are a mixture: a share π right, the others as good as deranged. If right pairs
    have the density of deranged ones tilted by exp(a s + b), the likelihood of the run's pairs is
    Π (π exp(a s + b) + 1 - π), and b follows from a because a density integrates to 1 (the
    exponential tilt of Anderson 1979). a and π are found on a grid, which suits evidence whose
    deranged values spread by about 1. The probability is for even odds of right and deranged,
    whatever π is. `paired` and `deranged` are the evidence of the run's pairs and of captions
    paired with other images.
    """
    best = (-np.inf, 1.0, 0.0)
    for slope in np.geomspace(0.02, 4.0, 48):
        peak = slope * deranged.max()
        offset = -(peak + np.log(np.mean(np.exp(slope * deranged - peak))))
        odds = np.exp(np.clip(slope * paired + offset, -_LARGEST, _LARGEST))
        for share in np.linspace(0.3, 0.99, 24):
            likelihood = float(np.log(share * odds + 1 - share).mean())
            best = max(best, (likelihood, float(slope), float(offset)))
    return best[1:]
