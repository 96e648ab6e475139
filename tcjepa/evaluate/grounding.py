"""Patch-word grounding: is the patch that is most like a word where the word's object is?

Every patch-word similarity of the conditioner (`tcjepa.watch.attention`) is a map of where a word
is. `tcjepa.evaluate.mentions` says which words name a known object and which patches show it.

- Pointing game (Zhang et al. 2016, arXiv 1608.00507), at patch resolution: a word hits
  if its map is largest on a patch of its object. Of several equally large patches each has its
  share, so that a map that says nothing scores chance exactly.
- Chance is the hit rate of a patch drawn evenly, for the same words: the object's share of the
  patches. It is the mean IoU of a map that marks everything, too.
- Another object: how often a map is largest on an object that its word does not name, where the
  image has one that another word names. The specificity is how much more often it is largest on its
  own object there. Of both the mean is over an object's words first, then over an image's objects,
  then over images, so that the specificity is exactly 0 for maps that find objects whatever the
  word, as those of a model may that was taught by captions of other images: a pointing game above
  chance is no evidence of grounding by itself.
- Mean IoU of a map's patches above a threshold with the object's, each word counting alike. Maps
  are scaled to [0, 1] each and one threshold serves all, chosen on other images than it is tested
  on (as Choe et al. 2020, arXiv 2001.07437, ask for).

There are eight ways to read a map (`mention_maps.READINGS`). Half of the images, by a hash of the
uid, chooses thresholds and the reading to be reported (of equally good ones the first); the other
half tests.

Shapes: W mentions, R readings, P patches, n images; the others as in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tcjepa import keyed
from tcjepa.evaluate.annotations import PLACED_BY
from tcjepa.evaluate.captioned import CaptionedImages, measured
from tcjepa.evaluate.features import Prepare
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.mention_maps import READINGS, mention_maps
from tcjepa.evaluate.mentions import PLACELESS, Mention, Mentions, find_mentions
from tcjepa.evaluate.pointing import between_objects, pointed
from tcjepa.evaluate.tally import Tally
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.text import TextEncoder

Floats = NDArray[np.float32]

#: Thresholds tried on maps scaled to [0, 1].
THRESHOLDS: Final = tuple(step / 50 for step in range(1, 50))
POINTING, CHANCE, MIOU = "pointing game", "pointing game, chance", "grounding mIoU"
OTHER, SPECIFICITY = "pointing game, another object", "pointing game, specificity"


class NoGroundingError(ValueError):
    """Grounding cannot be measured here; the message says why, for a note."""


@dataclass(frozen=True)
class Reading:
    """How well one way to read maps does; on the validation half what is chosen by.

    `specificity` is None where fewer than two images have two objects with words.
    """

    pointing: float
    miou: float
    threshold: float
    specificity: float | None
    validation_pointing: float
    validation_miou: float


@dataclass(frozen=True)
class GroundingResult:
    """Scores of the reading that the validation half chose, on the test half; shares in [0, 1].

    `other` and `specificity`, a difference, are None where fewer than two images have two objects
    with words: one image has no standard error. `per_category` is the pointing game of each name.
    `left_out` counts names whose referent is unknown or unseen, by reason, of both halves; a word
    is one occurrence of a name.
    """

    reading: str
    threshold: float
    pointing: Measure
    chance: Measure
    miou: Measure
    other: Measure | None
    specificity: Measure | None
    per_category: dict[str, float]
    readings: dict[str, Reading]
    images: int
    words: int
    validation_words: int
    left_out: dict[str, int]


def ground(
    model: TCJEPA,
    text: TextEncoder,
    test: CaptionedImages,
    device: torch.device,
    *,
    batch: int,
    prepare: Prepare = normalise,
) -> tuple[GroundingResult, dict[str, Tally]]:
    """Measure a model's grounding on test images; return it, and tallies by measure's name.

    The model must attend to words. `batch` [images] go through it at a time. Tallies hold the
    images of the test half that have a word. Raises `NoGroundingError` where the validation half
    has no word whose object is known or the test half has none in two images, `AnnotationError` and
    `ValueError` as `find_mentions` does.
    """
    grid = model.encoder.shape.grid
    mentions = find_mentions(test, text.spans_of, grid)
    held = halves(test.uids)
    if not mentions.annotated:
        raise NoGroundingError("no test image with captions is annotated")
    named = {mention.image for mention in mentions.found}
    tested = sum(not held[image] for image in named)
    if tested < 2 or tested == len(named):  # one image has no standard error
        raise NoGroundingError(_too_few(mentions))
    maps = mention_maps(model, text, test, mentions.found, device, batch=batch, prepare=prepare)
    return score(maps, mentions, test.uids)


def score(
    maps: Floats, mentions: Mentions, uids: Sequence[str]
) -> tuple[GroundingResult, dict[str, Tally]]:
    """Return result and tallies of maps (W, R, P) of the mentions in images `uids` (n).

    The validation half must have a mention, the test half mentions in two images. Raises
    `ValueError` for maps that are not finite.
    """
    if not np.isfinite(maps).all():
        raise ValueError("patch-word maps are not finite: the model has diverged")
    found = mentions.found
    truth = np.stack([mention.patches for mention in found])  # (W, P)
    is_fitted = halves(uids)[[mention.image for mention in found]]
    fitted, tested = np.flatnonzero(is_fitted), np.flatnonzero(~is_fitted)
    hits, scaled = pointed(maps, truth), _scaled(maps)
    best = int(hits[fitted].mean(axis=0).argmax())
    thresholds, validation = _best_thresholds(scaled[fitted], truth[fitted])
    overlaps = ious(scaled[tested], truth[tested], thresholds)
    own = [found[number] for number in tested]
    # (I, R) each, of the I images of the test half that have a word.
    others, specificity = between_objects(maps[tested], own)
    beside = np.isfinite(others[:, best])
    readings = {
        name: Reading(
            pointing=float(hits[tested, number].mean()),
            miou=float(overlaps[:, number].mean()),
            threshold=float(thresholds[number]),
            specificity=_mean(specificity[beside, number]),
            validation_pointing=float(hits[fitted, number].mean()),
            validation_miou=float(validation[number]),
        )
        for number, name in enumerate(READINGS)
    }
    tallies = _tallies(own, uids, hits[tested, best], overlaps[:, best])
    if beside.any():
        for name, values in ((OTHER, others[:, best]), (SPECIFICITY, specificity[:, best])):
            sums = np.where(beside, values, 0)[:, None], beside[:, None]
            tallies[name] = Tally.of_ratios(tallies[POINTING].images, *sums)
    result = GroundingResult(
        reading=READINGS[best],
        threshold=float(thresholds[best]),
        pointing=measured(tallies[POINTING]),
        chance=measured(tallies[CHANCE]),
        miou=measured(tallies[MIOU]),
        other=measured(tallies[OTHER]) if OTHER in tallies else None,
        specificity=measured(tallies[SPECIFICITY]) if SPECIFICITY in tallies else None,
        per_category=_by_category(own, hits[tested, best]),
        readings=readings,
        images=len({mention.image for mention in own}),
        words=len(tested),
        validation_words=len(fitted),
        left_out=dict(sorted(mentions.left_out.items())),
    )
    return result, tallies


def halves(uids: Sequence[str]) -> NDArray[np.bool_]:
    """Return which images (n,) are of the validation half; a function of each uid."""
    return np.array([keyed.draws(keyed.key("grounding half", uid), 1)[0] < 0.5 for uid in uids])


def ious(
    scaled: Floats, truth: NDArray[np.bool_], thresholds: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return IoUs (W, R) of scaled maps (W, R, P) from a threshold, or one per reading, upwards."""
    marked = scaled >= np.broadcast_to(thresholds, scaled.shape[1:2])[:, None]
    both = (marked & truth[:, None]).sum(axis=2)
    return np.asarray(both / (marked | truth[:, None]).sum(axis=2))


def _scaled(maps: Floats) -> Floats:
    """Return maps (W, R, P) scaled to [0, 1] each; 0 where a map is even."""
    low = maps.min(axis=2, keepdims=True)
    span = maps.max(axis=2, keepdims=True) - low
    return np.asarray((maps - low) / np.where(span > 0, span, 1), np.float32)


def _best_thresholds(
    scaled: Floats, truth: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each reading's best threshold (R,) and its mean IoU (R,); the lowest of equals."""
    tried = np.stack([ious(scaled, truth, each).mean(axis=0) for each in THRESHOLDS])
    return np.array(THRESHOLDS)[tried.argmax(axis=0)], tried.max(axis=0)


def _tallies(
    mentions: Sequence[Mention],
    uids: Sequence[str],
    hits: NDArray[np.float64],
    overlaps: NDArray[np.float64],
) -> dict[str, Tally]:
    """Return the tallies of what counts each word (W,) alike, over the images that have any."""
    sums = {
        POINTING: hits,
        CHANCE: np.array([mention.patches.mean() for mention in mentions]),
        MIOU: overlaps,
    }
    rows, place = np.unique([mention.image for mention in mentions], return_inverse=True)
    keys, words = [uids[row] for row in rows], np.bincount(place)
    return {
        name: Tally.of_ratios(keys, np.bincount(place, each)[:, None], words[:, None])
        for name, each in sums.items()
    }


def _too_few(mentions: Mentions) -> str:
    said = (
        f"{len(mentions.found)} words of {mentions.annotated} annotated test images name an object "
        "whose place is known: too few for a validation and a test half of two images"
    )
    lost = mentions.left_out[PLACELESS]
    return f"{said}; {lost} more name an {PLACELESS}: {PLACED_BY}" if lost else said


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _by_category(mentions: Sequence[Mention], hits: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean hit of each name's words, by name."""
    category = np.array([mention.category for mention in mentions])
    return {str(name): float(hits[category == name].mean()) for name in np.unique(category)}


__all__ = [
    "CHANCE",
    "MIOU",
    "OTHER",
    "POINTING",
    "SPECIFICITY",
    "THRESHOLDS",
    "GroundingResult",
    "NoGroundingError",
    "Reading",
    "ground",
    "halves",
    "ious",
    "score",
]
