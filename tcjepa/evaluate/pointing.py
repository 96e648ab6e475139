"""The pointing game: is a word's map largest on its object, and is it on others just as often?

Shapes: W mentions, R readings, P patches, I images with mentions, C named objects of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tcjepa.evaluate.mentions import Mention

Floats = NDArray[np.float32]


def pointed(maps: Floats, truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return hits (W, R) in [0, 1] of maps (W, R, P) on the objects' patches (W, P)."""
    largest = maps == maps.max(axis=2, keepdims=True)
    return np.asarray((largest & truth[:, None]).sum(axis=2) / largest.sum(axis=2))


def between_objects(
    maps: Floats, mentions: Sequence[Mention]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hits on other objects and specificity, (I, R) each, of maps (W, R, P) of mentions.

    They are those of the mentions' I images, by row: means over the words of an object, then over
    the pairs of an image's named objects. Words do not count alike: an object that is named more
    often than another would then count more often for itself than against itself. nan for an image
    with less than two named objects, and for all images if there is but one with more, which has no
    standard error.
    """
    images = np.array([mention.image for mention in mentions])
    rows = np.unique(images)
    others, specificity = np.full((2, len(rows), maps.shape[1]), np.nan)
    for place, row in enumerate(rows):
        words: dict[str, list[int]] = {}
        for number in np.flatnonzero(images == row).tolist():
            words.setdefault(mentions[number].category, []).append(number)
        if len(words) < 2:
            continue
        hits = _hits_between(maps, mentions, list(words.values()))
        own = hits.diagonal().T  # (C, R)
        apart = ~np.eye(len(words), dtype=bool)
        others[place] = hits[apart].mean(axis=0)
        # Each object's own words against the others' on that object: alike, they cancel exactly.
        specificity[place] = (own - hits)[apart].mean(axis=0)
    if np.isfinite(others[:, 0]).sum() < 2:
        others[:], specificity[:] = np.nan, np.nan
    return others, specificity


def _hits_between(
    maps: Floats, mentions: Sequence[Mention], words: Sequence[list[int]]
) -> NDArray[np.float64]:
    """Return mean hits (C, C, R) of the words of each of an image's C objects on each of them."""
    found = np.empty((len(words), len(words), maps.shape[1]))
    for of, own in enumerate(words):
        for on, theirs in enumerate(words):
            shown = np.broadcast_to(mentions[theirs[0]].patches, (len(own), maps.shape[2]))
            hits = pointed(maps[own], shown)
            # About the first one, so that the mean of equals is the same however many there are.
            found[of, on] = hits[0] + (hits - hits[0]).mean(axis=0)
    return found


__all__ = ["between_objects", "pointed"]
