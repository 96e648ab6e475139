"""The `annotations` column read back: objects, attributes, boxes, relations, background."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.sources.row import clean_text

Box = tuple[float, float, float, float]  # left, top, right, bottom; fractions of width and height

#: A spatial relation and the one that holds the other way round.
INVERSES: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
_CLEARLY_APART: Final = 0.2  # of the image's side, before boxes alone justify a relation
_OVER_EDGE: Final = 0.01  # of the image's side, how far a box in pixels may stand over


@dataclass(frozen=True)
class Thing:
    """An object of the image; `box` is None where the annotation has none."""

    category: str
    attributes: tuple[str, ...] = ()
    box: Box | None = None


@dataclass(frozen=True)
class SceneGraph:
    """What an image shows; `relations` are (subject, predicate, object) by position in `things`."""

    things: tuple[Thing, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str | None


def parse(annotations: str) -> SceneGraph:
    """Read the JSON of the `annotations` column (docs/architecture.md), and what is near it.

    Everything but the objects' categories may be missing; missing relations are taken from the
    boxes. Also read: a plain list of class names or of objects in place of the whole; a class name
    in place of an object; COCO's and Visual Genome's names of keys (`annotations`, `category_name`,
    `name`, `names`, `relationships`, …); COCO's `bbox` (left, top, width, height in pixels, with
    the image's `width` and `height` beside the objects; without them boxes are left out).
    Raises ValueError for anything malformed.
    """
    try:
        data = json.loads(annotations)
        if isinstance(data, list):
            data = {"objects": data}
        size = (data.get("width"), data.get("height"))
        items = _either(data, "objects", "annotations")
        if not isinstance(items, list):  # a string would be taken for its letters
            raise ValueError(f"expected a list of objects, got {items!r:.80}")
        things = tuple(_thing(item, size) for item in items)
        given = data.get("relations", data.get("relationships"))
        relations = (
            _relations_of_boxes(things)
            if given is None
            else tuple(_relation(item, len(things)) for item in given)
        )
        background = data.get("background")
        return SceneGraph(things, relations, None if background is None else _word(background))
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"malformed annotations: {error!r}") from error


def sparser(graph: SceneGraph, rate: float, draw: random.Random) -> SceneGraph:
    """Return the graph with a share `rate` of its objects' attributes left out, at random.

    What is left out at one rate is left out at every higher one drawn from the same stream.
    """
    things = tuple(
        # One number per attribute whatever the rate; it is below 1, so that rate 1 leaves none.
        replace(thing, attributes=tuple(a for a in thing.attributes if draw.random() >= rate))
        for thing in graph.things
    )
    return replace(graph, things=things)


def _either(item: Any, *names: str) -> Any:
    """Return the value under the first of the names that is there; raises KeyError."""
    return item[next((name for name in names if name in item), names[0])]


def _word(value: Any) -> str:
    # JSON escapes may hold what no text can: lone surrogates, control characters.
    word = " ".join(clean_text(value).split()) if isinstance(value, str) else ""
    if not word:
        raise ValueError(f"expected a word, got {value!r}")
    return word


def _thing(item: Any, size: tuple[Any, Any]) -> Thing:
    if isinstance(item, str):
        return Thing(_word(item))
    category = _either(item, "category", "category_name", "label", "name", "names")
    attributes = item.get("attributes") or ()
    return Thing(
        category=_word(category[0] if isinstance(category, list) else category),
        attributes=tuple(map(_word, [attributes] if isinstance(attributes, str) else attributes)),
        box=_box_of(item, size),
    )


def _box_of(item: Any, size: tuple[Any, Any]) -> Box | None:
    if item.get("box") is not None:
        return _box(item["box"])
    values = item.get("bbox")
    if values is None or None in size:
        return None
    left, top, width, height = (float(value) for value in values)
    across, down = float(size[0]), float(size[1])
    if not (across > 0 and down > 0):
        raise ValueError(f"image of {across} x {down} pixels")
    # Annotators' boxes may stand over the edge by a pixel or a rounding.
    box = (left / across, top / down, (left + width) / across, (top + height) / down)
    near = tuple(min(max(v, 0.0), 1.0) if -_OVER_EDGE <= v <= 1 + _OVER_EDGE else v for v in box)
    return _box(near)


def _box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise ValueError(f"box {values} is not left, top, right, bottom in fractions")
    return left, top, right, bottom


def _relation(item: Any, count: int) -> tuple[int, str, int]:
    if isinstance(item, dict):
        item = item["subject"], item["predicate"], item["object"]
    subject, predicate, other = item
    if not all(type(n) is int and 0 <= n < count for n in (subject, other)) or subject == other:
        raise ValueError(f"relation {item} must join two objects by their numbers")
    return subject, _word(predicate), other


def _relations_of_boxes(things: tuple[Thing, ...]) -> tuple[tuple[int, str, int], ...]:
    """Return left/right and above/below for pairs of boxes that are clearly apart."""
    found: list[tuple[int, str, int]] = []
    for a, first in enumerate(things):
        for b, second in enumerate(things[a + 1 :], start=a + 1):
            if first.box is None or second.box is None:
                continue
            dx = (second.box[0] + second.box[2] - first.box[0] - first.box[2]) / 2
            dy = (second.box[1] + second.box[3] - first.box[1] - first.box[3]) / 2
            if abs(dx) > max(_CLEARLY_APART, 1.5 * abs(dy)):
                found.append((a, "left of" if dx > 0 else "right of", b))
            elif abs(dy) > max(_CLEARLY_APART, 1.5 * abs(dx)):
                found.append((a, "above" if dy > 0 else "below", b))
    return tuple(found)
