"""Ground-truth masks from structured annotations, in the geometry of the evaluation crop.

Polygons go through the map of the image's own crop (`tcjepa.data.augment.crop_geometry`), then
every pixel whose centre lies inside is filled, later objects over earlier ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tcjepa.data.augment import crop_geometry

BACKGROUND = 0
IGNORED = 255
_MOST_CLASSES = 254

Polygon = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]
ObjectMask = npt.NDArray[np.int16]


def parse(annotations: dict[str, Any] | str) -> dict[str, Any]:
    """Return annotations as a dict from a dict or JSON text; raises `ValueError` if malformed."""
    parsed = json.loads(annotations) if isinstance(annotations, str) else annotations
    if not isinstance(parsed, dict) or not isinstance(parsed.get("objects", []), list):
        raise ValueError('annotations must be a JSON object with a list under "objects"')
    return parsed


def categories(annotations: Iterable[dict[str, Any]]) -> list[str]:
    """Return the sorted categories of all objects: class c of a mask is entry c - 1.

    Raises `ValueError` above 254 categories, which a mask of bytes cannot hold.
    """
    found = sorted({item["category"] for one in annotations for item in one.get("objects", [])})
    if len(found) > _MOST_CLASSES:
        raise ValueError(f"{len(found)} categories; a mask holds at most {_MOST_CLASSES}")
    return found


def crop_polygons(
    annotations: dict[str, Any], width: int, height: int, size: int
) -> list[tuple[str, Polygon]]:
    """Return (category, vertices (V, 2) as x, y in crop pixels) of each object, painting order.

    `width` and `height` [pixels] are those of the image that the annotations' fractions refer to;
    `size` [pixels] is the side of the centre crop. An object without polygon gives its box. Points
    outside the crop are kept, so that a polygon is cut by its edges and not by its vertices.
    Raises `ValueError` for an object with neither polygon nor box.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} × {height} pixels has no crop")
    geometry = crop_geometry(height, width, size)
    resized, corner = np.array(geometry.resized), np.array(geometry.corner)
    return [
        (item["category"], _vertices(item) * resized[::-1] - corner[::-1])
        for item in annotations.get("objects", [])
    ]


def rasterise(
    annotations: dict[str, Any],
    size: int,
    classes: Sequence[str],
    *,
    width: int,
    height: int,
) -> Mask:
    """Return the mask (size, size) uint8 of an image's centre crop; see `crop_polygons`.

    0 is background, c the category `classes[c - 1]`, 255 (ignored) a category not among `classes`.
    Polygons are filled by the even-odd rule at pixel centres.
    """
    number = {name: index for index, name in enumerate(classes, start=1)}
    own = [number.get(item["category"], IGNORED) for item in annotations.get("objects", [])]
    shown = rasterise_objects(annotations, size, width=width, height=height)
    return np.array([BACKGROUND, *own], np.uint8)[shown]


def rasterise_objects(
    annotations: dict[str, Any], size: int, *, width: int, height: int
) -> ObjectMask:
    """Return which object is seen at each pixel of the centre crop, (size, size) int16.

    0 is background, n the annotation's n-th object, counted from 1; otherwise as `rasterise`.
    """
    mask = np.zeros((size, size), np.int16)
    for number, (_, vertices) in enumerate(
        crop_polygons(annotations, width, height, size), start=1
    ):
        _fill(mask, vertices, number)
    return mask


def _vertices(item: dict[str, Any]) -> Polygon:
    if item.get("polygon"):
        return np.asarray(item["polygon"], np.float64).reshape(-1, 2)
    if item.get("box"):
        left, top, right, bottom = item["box"]
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        return np.asarray(corners, np.float64)
    raise ValueError(f"object {item.get('category')!r} has neither polygon nor box")


def _fill(mask: ObjectMask, vertices: Polygon, value: int) -> None:
    """Paint pixels whose centres an odd number of edges lie left of.

    Each edge flips the parity of all pixels right of it, in the rows whose centres it spans.
    """
    size = mask.shape[0]
    low = np.clip(np.ceil(vertices.min(axis=0) - 0.5), 0, size).astype(int)
    high = np.clip(np.ceil(vertices.max(axis=0) - 0.5), 0, size).astype(int)
    if (low >= high).any():
        return
    rows = np.arange(low[1], high[1])
    centres = rows[:, None] + 0.5
    x0, y0 = vertices.T
    x1, y1 = np.roll(vertices, -1, axis=0).T
    # Half-open in y: a vertex on a row's centre belongs to one of its two edges, never to both.
    crossed = (y0 <= centres) != (y1 <= centres)
    row, edge = np.nonzero(crossed)
    along = (rows[row] + 0.5 - y0[edge]) / (y1 - y0)[edge]
    crossing = x0[edge] + along * (x1 - x0)[edge]
    column = np.clip(np.ceil(crossing - 0.5), low[0], high[0]).astype(int) - low[0]
    flips = np.zeros((len(rows), high[0] - low[0] + 1), np.int32)
    np.add.at(flips, (row, column), 1)
    inside = np.cumsum(flips[:, :-1], axis=1) % 2 == 1
    mask[low[1] : high[1], low[0] : high[0]][inside] = value


__all__ = [
    "BACKGROUND",
    "IGNORED",
    "categories",
    "crop_polygons",
    "parse",
    "rasterise",
    "rasterise_objects",
]
