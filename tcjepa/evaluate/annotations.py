"""The `annotations` column as evaluation reads it: what an image's objects are and where.

The pipeline's captioner reads the same column (`pipeline.captioners.scene_graph`, which the trainer
must not import). Of objects, this accepts what that does and refuses what that refuses, which a
test compares; attributes, relations and the background measure nothing and are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
Box = tuple[float, float, float, float]  # left, top, right, bottom; fractions of width and height

#: How an object is given a place, for notes on those that have none.
PLACED_BY: Final = (
    'give each a "box" or "polygon" in fractions, or a "bbox" in pixels with the image\'s "width" '
    'and "height" beside the objects'
)
_OVER_EDGE: Final = 0.01  # of the image's side, how far a box in pixels may stand over


class AnnotationError(ValueError):
    """Annotations that cannot serve as truth; the message says which and why, for a note."""


@dataclass(frozen=True, eq=False)
class AnnotatedObject:
    """An object of an image; `outline` (V, 2), x and y in fractions, is None where unknown."""

    category: str
    outline: Polygon | None = None


def objects_of(record: Mapping[str, Any], sample: str) -> list[AnnotatedObject] | None:
    """Return the objects that a record's `annotations` name; None where it has none.

    Raises `AnnotationError`, which names the `sample`, for malformed ones.
    """
    if record.get("annotations") is None:
        return None
    try:
        return parse(record["annotations"])
    except ValueError as error:
        raise AnnotationError(
            f"the annotations of sample {sample} are malformed: {error}; correct or remove them"
        ) from error


def size_of(record: Mapping[str, Any], sample: str) -> tuple[int, int]:
    """Return (width, height) [pixels] of a record's image, which its objects are fractions of.

    Raises `AnnotationError`, which names the `sample`, where the record does not say.
    """
    width, height = record.get("width"), record.get("height")
    if not isinstance(width, int) or not isinstance(height, int) or width < 1 or height < 1:
        raise AnnotationError(
            f"sample {sample} has annotations, which need the image's width and height [pixels], "
            f"got {width!r} and {height!r}; add both to its record"
        )
    return width, height


def parse(annotations: Any) -> list[AnnotatedObject]:
    """Return objects in painting order from JSON text, or from what such text holds.

    That is `{"objects": […]}` as docs/architecture.md has it, or a plain list of objects; an object
    may be a plain class name. COCO's and Visual Genome's names of keys are read, too. A polygon
    goes before a box; COCO's `bbox` in pixels is a place only with the image's `width` and `height`
    beside the objects. Raises `ValueError` for anything malformed.
    """
    try:
        data = json.loads(annotations) if isinstance(annotations, str) else annotations
        if isinstance(data, list):
            data = {"objects": data}
        items = _either(data, "objects", "annotations")
        if not isinstance(items, list):
            raise ValueError(f"expected a list of objects, got {items!r:.80}")
        size = (data.get("width"), data.get("height"))
        return [_object(item, size) for item in items]
    except (LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{error!r:.80}") from error


def _either(item: Any, *names: str) -> Any:
    """Return the value under the first of the names that is there."""
    if not isinstance(item, dict):
        raise ValueError(f"expected a JSON object, got {item!r:.80}")
    for name in names:
        if name in item:
            return item[name]
    raise ValueError(f'no "{names[0]}" in {item!r:.80}')


def _object(item: Any, size: tuple[Any, Any]) -> AnnotatedObject:
    if isinstance(item, str):
        return AnnotatedObject(_word(item))
    category = _either(item, "category", "category_name", "label", "name", "names")
    name = _word(category[0] if isinstance(category, list) else category)
    box = _box_of(item, size)
    if item.get("polygon"):
        return AnnotatedObject(name, _polygon(item["polygon"]))
    if box is None:
        return AnnotatedObject(name)
    left, top, right, bottom = box
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return AnnotatedObject(name, np.array(corners, np.float64))


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a class name, got {value!r:.80}")
    return " ".join(value.split())


def _polygon(values: Any) -> Polygon:
    points = np.asarray(values, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"polygon {values!r:.80} is not three or more pairs x, y in fractions")
    return points


def _box_of(item: dict[str, Any], size: tuple[Any, Any]) -> Box | None:
    if item.get("box") is not None:
        return _box(item["box"])
    values = item.get("bbox")
    if values is None or None in size:
        return None
    left, top, width, height = (float(value) for value in values)
    across, down = float(size[0]), float(size[1])
    if not (across > 0 and down > 0):
        raise ValueError(f"an image of {across} × {down} pixels has no box")
    # Annotators' boxes may stand over the edge by a pixel or a rounding.
    box = (left / across, top / down, (left + width) / across, (top + height) / down)
    return _box([min(max(v, 0.0), 1.0) if -_OVER_EDGE <= v <= 1 + _OVER_EDGE else v for v in box])


def _box(values: Any) -> Box:
    left, top, right, bottom = (float(value) for value in values)
    if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
        raise ValueError(f"box {values!r:.80} is not left, top, right, bottom in fractions")
    return left, top, right, bottom


__all__ = ["PLACED_BY", "AnnotatedObject", "AnnotationError", "objects_of", "parse", "size_of"]
