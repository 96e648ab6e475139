"""Which words of captions name which annotated object, and which patches show that object.

A word counts where its referent is known: it names a category of which the image has exactly one
object, wherever in the image, and that object is seen in the evaluation crop.

- Names are found as whole words, whatever their case; the longest name wins ("hot dog" is no dog).
  A plural ("stars") speaks of several objects and is no name of one.
- Where the pipeline wrote noun spans, the name must end where a noun ends: "star-shaped" and
  an "orange" dress name no object. A caption without any span is taken as it is.
- A name that occurs again, in the same caption or in another one, counts each time: a model reads
  each of them in its own place.

Shapes: H pixels (square crops), P = g·g patches in raster order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import Caption
from tcjepa.evaluate.annotations import AnnotatedObject, objects_of, size_of
from tcjepa.evaluate.captioned import CaptionedImages
from tcjepa.evaluate.rasterise import ObjectMask, rasterise_objects

SpansOf = Callable[[str], list[tuple[int, int]]]
"""`tcjepa.text.TextEncoder.spans_of`: the characters of each of a caption's pieces."""
Bools = NDArray[np.bool_]

#: A patch shows an object that covers this much of it; one that shows less in all is not seen.
COVERED: Final = 0.5
#: Why a name is left out whose object has neither box nor polygon.
PLACELESS: Final = "object without box or polygon"
_PART = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Mention:
    """A name of an object in a caption: where its pieces are in a `TextBatch`, what it names."""

    image: int  # row of the test set
    caption: int  # number along N
    pieces: tuple[int, ...]  # numbers along S
    category: str
    patches: Bools  # (P,) True at the object's patches, of which there is at least one


@dataclass(frozen=True)
class Mentions:
    """All names whose referent is known, in the order of images; how many others there are."""

    found: list[Mention]
    left_out: Counter[str]
    annotated: int  # images with annotations


def find_mentions(test: CaptionedImages, spans_of: SpansOf, grid: tuple[int, int]) -> Mentions:
    """Return the mentions of a test set; names are the categories of its own annotations.

    `grid` is the encoder's (rows, columns) of patches. Raises `AnnotationError` for annotations
    that are malformed or lack the image's size, `ValueError` for a crop that the grid does not
    divide.
    """
    truths = [objects_of(*pair) for pair in zip(test.records, test.uids, strict=True)]
    names = {_key(one.category) for truth in truths for one in truth or ()} - {""}
    pattern = _pattern(names)
    found: list[Mention] = []
    left_out: Counter[str] = Counter()
    for image, truth in enumerate(truths):
        if truth is None or pattern is None:
            continue
        count = Counter(_key(one.category) for one in truth)
        placeless = {_key(one.category) for one in truth if one.outline is None}
        seen: dict[str, Bools] | None = None
        for number, caption in enumerate(test.captions[image]):
            spans: list[tuple[int, int]] | None = None
            for start, end, name in _names(pattern, caption):
                if not count[name]:
                    continue  # a name of nothing here: swapped or invented
                if count[name] > 1:
                    left_out["one of several objects of the category"] += 1
                    continue
                if name in placeless:
                    left_out[PLACELESS] += 1
                    continue
                if seen is None:
                    size = size_of(test.records[image], test.uids[image])
                    seen = _seen(truth, size, test.images.shape[-1], grid)
                if name not in seen:
                    left_out["object outside the crop, or hidden"] += 1
                    continue
                spans = spans_of(caption["text"]) if spans is None else spans
                pieces = tuple(s for s, (a, b) in enumerate(spans) if a < end and start < b)
                if not pieces or spans[pieces[-1]][1] < end:
                    left_out["beyond text.max_words"] += 1
                    continue
                found.append(Mention(image, number, pieces, name, seen[name]))
    return Mentions(found, left_out, sum(truth is not None for truth in truths))


def object_patches(shown: ObjectMask, number: int, grid: tuple[int, int]) -> Bools | None:
    """Return the patches (P,) of object `number` in a mask (H, H) of `rasterise_objects`.

    They are those that it covers by half or more; if there is none, those that it covers most. None
    if all that is seen of it is less than half a patch.
    """
    rows, columns = grid
    size = shown.shape[0]
    if size % rows or size % columns:
        raise ValueError(f"a grid of {grid} patches does not divide a crop of {size} pixels")
    cells = (shown == number).reshape(rows, size // rows, columns, size // columns)
    covered = cells.mean(axis=(1, 3)).ravel()
    if covered.sum() < COVERED:
        return None
    return np.asarray(covered >= min(COVERED, covered.max()))


def _seen(
    objects: Sequence[AnnotatedObject], size: tuple[int, int], side: int, grid: tuple[int, int]
) -> dict[str, Bools]:
    """Return the patches of each object that is seen, by category; the last of equals.

    `size` is the image's (width, height), `side` that of its crop, all in pixels.
    """
    shown = rasterise_objects(objects, side, width=size[0], height=size[1])
    patches = {
        _key(one.category): object_patches(shown, number, grid)
        for number, one in enumerate(objects, start=1)
    }
    return {name: own for name, own in patches.items() if own is not None}


def _key(text: str) -> str:
    """Return a name as it is compared: case-folded words, one space between them."""
    return " ".join(_PART.findall(text.casefold()))


def _pattern(names: set[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    words = (r"[\s_-]+".join(map(re.escape, name.split())) for name in longest_first)
    joined = "|".join(words)
    return re.compile(rf"(?<![^\W_])(?:{joined})(?![^\W_])", re.IGNORECASE) if joined else None


def _names(pattern: re.Pattern[str], caption: Caption) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, name) of each name in a caption."""
    nouns = caption["nouns"]
    for match in pattern.finditer(caption["text"]):
        start, end = match.span()
        if not nouns or any(b == end for _, b in nouns):
            yield start, end, _key(match.group())


__all__ = ["COVERED", "PLACELESS", "Mention", "Mentions", "find_mentions", "object_patches"]
