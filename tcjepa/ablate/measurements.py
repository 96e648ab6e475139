"""What arms measured, by seed and on drawn test images: what estimates are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tcjepa.ablate import results
from tcjepa.ablate.bootstrap import ImageDraws, Repeated
from tcjepa.ablate.results import Outcome, measure_names
from tcjepa.evaluation import TRAINED, UNTRAINED

Arms = dict[str, dict[str, Repeated]]
"""Measure -> arm -> what its seeds measured."""
Twins = dict[str, dict[str, dict[int, Outcome]]]
"""Arm of random weights -> measure -> seed -> the outcome whose random twin stands for it."""


def random_arms(found: Sequence[Outcome]) -> Twins:
    """Return the arms of random weights, one per encoder; a seed's twin is the same in its arms.

    A measure in which their twins differ, with what they are tested on, the predictor, masks or
    captions, is left out: it would be the first arm's alone.
    """
    first = {outcome.encoder: outcome.trial.arm.name for outcome in reversed(found)}
    name = {e: UNTRAINED if len(first) == 1 else f"{UNTRAINED}, {first[e]}" for e in first}
    alike: dict[tuple[str, str], set[tuple[str, str, str]]] = {}
    for outcome in found:
        for measure in outcome.random:
            alike.setdefault((outcome.encoder, measure), set()).add(outcome.twin_of(measure))
    twins: Twins = {}
    for outcome in found:
        for measure in outcome.random:
            if len(alike[outcome.encoder, measure]) == 1:
                arm = twins.setdefault(name[outcome.encoder], {})
                arm.setdefault(measure, {}).setdefault(outcome.trial.seed, outcome)
    return twins


def repeated(
    found: Sequence[Outcome], twins: Twins, replicates: int
) -> tuple[Arms, dict[str, int]]:
    """Return what was measured, and how many test images each measure's intervals draw (or 0)."""
    names = measure_names(found)
    draws = ImageDraws(results.images(found), replicates)
    arms: Arms = {name: {} for name in names}
    images = dict.fromkeys(names, 0)
    flat: set[str] = set()

    for outcome in found:
        kept, seed = results.tallies(outcome), outcome.trial.seed
        for row, arm, values in _rows(outcome, twins):
            for measure in (m for m in values if m in arms):
                own = arms[measure].setdefault(arm, Repeated({}, {}))
                own.values[seed] = values[measure]
                tally = kept.get(row, {}).get(measure)
                if tally is None:
                    flat.add(measure)
                else:
                    images[measure] = max(images[measure], len(tally))
                    own.replicates[seed] = results.scale(measure) * draws.values(tally)
    for measure in flat:  # in all arms, or differences would compare unlike draws
        images[measure] = 0
        for own in arms[measure].values():
            own.replicates.update({s: np.full(replicates, v) for s, v in own.values.items()})
    return arms, images


def _rows(outcome: Outcome, twins: Twins) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (row of the evaluation, arm, values) that an outcome stands for."""
    yield TRAINED, outcome.trial.arm.name, outcome.values
    for arm, firsts in twins.items():
        own = [m for m in firsts if firsts[m].get(outcome.trial.seed) is outcome]
        yield UNTRAINED, arm, {m: outcome.random[m] for m in own}


__all__ = ["Arms", "Twins", "random_arms", "repeated"]
