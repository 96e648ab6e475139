"""Ground-truth masks from structured annotations, in the geometry of the evaluation crop.

Polygons go through the map of the image's own crop (`tcjepa.data.augment.crop_geometry`), then
every pixel whose centre lies inside is filled, later objects over earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from tcjepa.data.augment import crop_geometry
from tcjepa.evaluate.annotations import AnnotatedObject, AnnotationError, Polygon

BACKGROUND = 0
IGNORED = 255
_MOST_CLASSES = 254

Mask = npt.NDArray[np.uint8]
ObjectMask = npt.NDArray[np.int16]


def categories(annotations: Iterable[Sequence[AnnotatedObject]]) -> list[str]:
    """Return the sorted categories of objects with a place: class c of a mask is entry c - 1.

    Raises `AnnotationError` above 254 categories, which a mask of bytes cannot hold.
    """
    drawn = (one for objects in annotations for one in objects if one.outline is not None)
    found = sorted({one.category for one in drawn})
    if len(found) > _MOST_CLASSES:
        raise AnnotationError(
            f"{len(found)} categories are annotated and a mask holds at most {_MOST_CLASSES}; name "
            "fewer of them"
        )
    return found


def crop_polygons(
    objects: Sequence[AnnotatedObject], width: int, height: int, size: int
) -> list[Polygon | None]:
    """Return the vertices (V, 2) as x, y in crop pixels of each object; None where unknown.

    `width` and `height` [pixels] are those of the image that the annotations' fractions refer to;
    `size` [pixels] is the side of the centre crop. Points outside the crop are kept, so that a
    polygon is cut by its edges and not by its vertices.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} × {height} pixels has no crop")
    geometry = crop_geometry(height, width, size)
    resized, corner = np.array(geometry.resized), np.array(geometry.corner)
    return [
        None if one.outline is None else one.outline * resized[::-1] - corner[::-1]
        for one in objects
    ]


def rasterise(
    objects: Sequence[AnnotatedObject],
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
    own = [number.get(one.category, IGNORED) for one in objects]
    shown = rasterise_objects(objects, size, width=width, height=height)
    return np.array([BACKGROUND, *own], np.uint8)[shown]


def rasterise_objects(
    objects: Sequence[AnnotatedObject], size: int, *, width: int, height: int
) -> ObjectMask:
    """Return which object is seen at each pixel of the centre crop, (size, size) int16.

    0 is background, n the n-th object, counted from 1; otherwise as `rasterise`. Objects without
    outline are not drawn.
    """
    mask = np.zeros((size, size), np.int16)
    for number, vertices in enumerate(crop_polygons(objects, width, height, size), start=1):
        if vertices is not None:
            _fill(mask, vertices, number)
    return mask


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
    "rasterise",
    "rasterise_objects",
]
