"""What exists in the world: shapes, colours, sizes, textures, backgrounds, relations.

The names are the labels of the `shape`, `colour` and `background` columns and the words of the
scene graph.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]  # (n, 2) points x, y; y points down

#: Colour name -> blue, green, red in 0..255.
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (40, 30, 215),
    "orange": (20, 130, 250),
    "yellow": (40, 225, 250),
    "green": (50, 160, 45),
    "turquoise": (205, 215, 50),
    "blue": (215, 80, 30),
    "purple": (160, 35, 120),
    "pink": (190, 125, 250),
    "white": (245, 245, 245),
    "black": (30, 28, 28),
}

#: Size name -> range of twice the unit of `SHAPES`, as a share of the image's shorter side.
SIZES: Final[dict[str, tuple[float, float]]] = {
    "small": (0.27, 0.32),
    "medium": (0.37, 0.45),
    "large": (0.54, 0.64),
}

TEXTURES: Final = ("plain", "striped", "dotted", "checkered", "speckled", "shiny")

#: Background name -> its typical colour (blue, green, red), which objects on it keep away from.
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "meadow": (62, 140, 104),
    "calm sea": (165, 125, 55),
    "cloudy sky": (225, 190, 150),
    "sandy beach": (140, 185, 212),
    "brick wall": (72, 84, 150),
    "wooden floor": (70, 110, 160),
    "night sky": (62, 34, 26),
    "snowy field": (240, 232, 226),
}

#: Size and texture that go without saying: the scene graph leaves them out of `attributes`.
UNMARKED: Final = ("medium", "plain")


def _points(x: Any, y: Any) -> Outline:
    return np.stack([x, y], axis=1).astype(np.float64)


def _regular(points: int, start: float = -math.pi / 2) -> Outline:
    angles = start + np.arange(points) * (2 * math.pi / points)
    return _points(np.cos(angles), np.sin(angles))


def _star() -> Outline:
    outline = _regular(10)
    outline[1::2] *= 0.42
    return outline


def _heart() -> Outline:
    t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return _points(x / 17, (y - 2.5) / 17)


def _crescent() -> Outline:
    # A disc less a disc of the same radius that is moved right; the tips are where they cross.
    shift = 0.62
    tip = math.acos(shift / 2)
    outer = np.linspace(tip, 2 * math.pi - tip, 22)
    inner = np.linspace(math.pi + tip, math.pi - tip, 18)[1:-1]
    moon = _points(np.cos(outer), np.sin(outer))
    bite = _points(shift + np.cos(inner), np.sin(inner))
    middle = np.array([0.25, 0.0])
    return np.concatenate([moon + middle, bite + middle])


_ARM = 0.33
_CROSS = [
    (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
    (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip
_ARROW = [(1, 0), (0.15, -0.8), (0.15, -0.32), (-1, -0.32), (-1, 0.32), (0.15, 0.32), (0.15, 0.8)]

_AREA: Final = 2.0  # of every outline, so that neither prominence nor colour tells the shape


def _equalised(outline: Outline) -> Outline:
    """Scale an outline to the common area (shoelace formula)."""
    x, y = outline.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return outline * math.sqrt(_AREA / area)


#: Shape name -> its outline around the origin, corners in drawing order, area `_AREA`.
SHAPES: Final[dict[str, Outline]] = {
    "circle": _equalised(_regular(32)),
    "square": _equalised(_regular(4, math.pi / 4)),
    "triangle": _equalised(_regular(3) + np.array([0.0, 0.18])),
    "star": _equalised(_star()),
    "cross": _equalised(np.array(_CROSS, dtype=np.float64)),
    "heart": _equalised(_heart()),
    "crescent": _equalised(_crescent()),
    "arrow": _equalised(np.array(_ARROW, dtype=np.float64)),
}


def contrasting_colours(background: str, distance: float = 85.0) -> list[str]:
    """Return the colours that stand out from a background, in `COLOURS` order.

    `distance` is the least Euclidean distance in blue-green-red units of 0..255.
    """
    typical = np.array(BACKGROUNDS[background], dtype=np.float64)
    return [
        name
        for name, value in COLOURS.items()
        if float(np.linalg.norm(np.array(value) - typical)) >= distance
    ]
