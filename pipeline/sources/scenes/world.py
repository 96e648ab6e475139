"""Scenes: which objects stand where, a pure function of (seed, split, index)."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np

from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.vocabulary import (
    BACKGROUNDS,
    SHAPES,
    SIZES,
    UNMARKED,
    Outline,
    contrasting_colours,
)

Split = Literal["train", "test"]
Relation = tuple[int, str, int]  # subject and object are positions in `Scene.objects`

_MAX_TURN: Final = math.radians(20)  # more would turn an upright cross into an x
_LARGEST_ASPECT: Final = 1.8
_PLACEMENT_TRIES: Final = 10
_CLOSEST: Final = 0.6  # least distance of two centres, as a share of the sum of the radii
_MAP_SIDE: Final = 64  # longer side of the map on which visible areas are counted [px]

_PALETTES: Final = {name: contrasting_colours(name) for name in BACKGROUNDS}
_BACKGROUND_NAMES: Final = tuple(BACKGROUNDS)
_CROWDED_SIZES: Final = ("small", "small", "medium")


@dataclass(frozen=True)
class SceneObject:
    """One object; `polygon` has x, y in fractions of the image's width and height.

    `visible` is the share of the image where the object is seen (not hidden by later ones), `tilt`
    its rotation in radians.
    """

    shape: str
    colour: str
    size: str
    texture: str
    polygon: tuple[tuple[float, float], ...]
    tilt: float
    visible: float = 0.0

    @property
    def attributes(self) -> list[str]:
        """Size, texture and colour in English word order, without those that go unsaid."""
        return [a for a in (self.size, self.texture, self.colour) if a not in UNMARKED]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in fractions of width and height."""
        xs, ys = zip(*self.polygon, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Scene:
    """A scene graph; `objects` are in painting order, later ones in front."""

    seed: int
    split: Split
    index: int
    width: int
    height: int
    background: str
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]

    @property
    def prominent(self) -> SceneObject:
        """The object with the largest visible area, which the scalar labels speak of."""
        return max(self.objects, key=lambda o: o.visible)

    def annotations(self) -> str:
        """Return the graph as the `annotations` column's JSON (docs/architecture.md)."""
        objects = [
            {
                "category": o.shape,
                "attributes": o.attributes,
                "box": o.box,
                "polygon": o.polygon,
            }
            for o in self.objects
        ]
        graph = {"background": self.background, "objects": objects, "relations": self.relations}
        return json.dumps(graph, separators=(",", ":"))


def stream(seed: int, split: Split, index: int, purpose: str) -> random.Random:
    """Return the random numbers of one purpose for one row.

    Python's own generator, because its sequence for a seed is the same in every version.
    """
    return random.Random(f"{seed}/{split}/{index}/{purpose}")


def scene(config: ScenesConfig, split: Split, index: int) -> Scene:
    """Return scene `index` of a split."""
    draw = stream(config.seed, split, index, "scene")
    width, height = _image_size(config, draw)
    background = draw.choice(_BACKGROUND_NAMES)
    placed = _place_objects(config, draw, width, height, _PALETTES[background])
    objects, hidden = _measure_visible(placed, width, height)
    return Scene(
        seed=config.seed,
        split=split,
        index=index,
        width=width,
        height=height,
        background=background,
        objects=objects,
        relations=_relations(draw, objects, hidden),
    )


def _image_size(config: ScenesConfig, draw: random.Random) -> tuple[int, int]:
    short = draw.randint(config.min_side, config.max_side)
    long = min(config.max_side, round(short * draw.uniform(1.0, _LARGEST_ASPECT)))
    return (short, long) if draw.random() < 0.5 else (long, short)


def _place_objects(
    config: ScenesConfig, draw: random.Random, width: int, height: int, palette: list[str]
) -> list[SceneObject]:
    """Place 1 to `max_objects` objects; where the image is full, fewer than drawn."""
    wanted = draw.randint(1, config.max_objects)
    crowded = [size for size in _CROWDED_SIZES if size in config.sizes]
    sizes = crowded if wanted > 3 and crowded else config.sizes
    objects: list[SceneObject] = []
    discs: list[tuple[float, float, float]] = []  # centre x, y and radius [px]
    named: set[tuple[str, str]] = set()
    for _ in range(wanted):
        name = (draw.choice(config.shapes), draw.choice(palette))
        if name in named:  # "the red star" must mean one object
            continue
        size, texture = draw.choice(sizes), draw.choice(config.textures)
        radius = draw.uniform(*SIZES[size]) * min(width, height) / 2
        tilt = draw.uniform(-_MAX_TURN, _MAX_TURN)
        outline = _turn(SHAPES[name[0]], tilt) * radius
        centre = _free_centre(draw, outline, radius, discs, (width, height))
        if centre is None:
            continue
        points = (outline + np.array(centre)) / np.array([width, height])
        polygon = tuple((x, y) for x, y in points.round(4).tolist())
        objects.append(SceneObject(*name, size, texture, polygon, tilt))
        discs.append((*centre, radius))
        named.add(name)
    return objects


def _turn(outline: Outline, angle: float) -> Outline:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Outline = outline @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _free_centre(
    draw: random.Random,
    outline: Outline,
    radius: float,
    discs: list[tuple[float, float, float]],
    size: tuple[int, int],
) -> tuple[float, float] | None:
    """Return a centre that keeps the outline inside and leaves every object recognisable."""
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    for _ in range(_PLACEMENT_TRIES):
        x = draw.uniform(1 - left, size[0] - 1 - right)
        y = draw.uniform(1 - top, size[1] - 1 - bottom)
        if all(math.hypot(x - u, y - v) >= _CLOSEST * (radius + r) for u, v, r in discs):
            return x, y
    return None


def _measure_visible(
    placed: list[SceneObject], width: int, height: int
) -> tuple[tuple[SceneObject, ...], dict[tuple[int, int], float]]:
    """Paint object numbers on a small map and count what stays visible of each.

    Returns the objects with `visible` set, and for pairs (back, front) that overlap the share of
    the back object that the front one covers.
    """
    scale = _MAP_SIDE / max(width, height)
    size = np.array([width * scale, height * scale])
    seen = np.zeros((math.ceil(size[1]), math.ceil(size[0])), np.uint8)
    hidden: dict[tuple[int, int], float] = {}
    areas: list[int] = []
    for number, item in enumerate(placed, start=1):
        before = seen.copy()
        cv2.fillPoly(seen, [(np.array(item.polygon) * size).astype(np.int32)], number)
        covered = np.bincount(before[seen == number], minlength=number).tolist()
        areas.append(sum(covered))
        for back in range(1, number):
            if covered[back]:
                hidden[back - 1, number - 1] = covered[back] / areas[back - 1]
    counts = np.bincount(seen.ravel(), minlength=len(placed) + 1) / seen.size
    objects = tuple(
        SceneObject(o.shape, o.colour, o.size, o.texture, o.polygon, o.tilt, float(counts[n]))
        for n, o in enumerate(placed, start=1)
    )
    return objects, hidden


def _relations(
    draw: random.Random,
    objects: tuple[SceneObject, ...],
    hidden: dict[tuple[int, int], float],
) -> tuple[Relation, ...]:
    """Return the relations that are plain to see, each in one of its two directions."""
    centres = [((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2) for o in objects]
    found: list[Relation] = []
    for a in range(len(objects)):
        for b in range(a + 1, len(objects)):
            dx, dy = centres[b][0] - centres[a][0], centres[b][1] - centres[a][1]
            pair = (a, b) if draw.random() < 0.5 else (b, a)
            swap = pair == (b, a)
            if abs(dx) > 0.2 and abs(dx) > 1.5 * abs(dy):
                found.append((pair[0], "left of" if (dx > 0) != swap else "right of", pair[1]))
            elif abs(dy) > 0.2 and abs(dy) > 1.5 * abs(dx):
                found.append((pair[0], "above" if (dy > 0) != swap else "below", pair[1]))
            if hidden.get((a, b), 0.0) > 0.08:
                found.append((pair[0], "in front of" if swap else "behind", pair[1]))
    return tuple(found)
