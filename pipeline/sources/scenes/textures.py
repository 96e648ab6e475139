"""Surfaces, painted once per process: backdrops to cut backgrounds from, patterns for objects.

Cutting a random window from a ready tile costs almost nothing per image; painting one would cost
more than the rest of the scene. The tiles do not depend on the config's seed.
"""

from __future__ import annotations

import functools
import zlib
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.scenes.vocabulary import BACKGROUNDS, TEXTURES

Image = NDArray[np.uint8]  # (H, W, 3) blue, green, red
Field = NDArray[np.float32]  # (H, W), of order 1

#: Side of a backdrop [px]; a window is at most `BACKDROP_WINDOW` px wide before it is scaled.
BACKDROP_SIDE: Final = 768
BACKDROP_WINDOW: Final = 512

#: Side of a pattern [px]; an object's diameter is half of it, so that it can be turned and moved.
PATTERN_SIDE: Final = 256

#: Standard deviation of `grain`, in grey levels.
GRAIN_DEVIATION: Final = 32


def paint_all() -> None:
    """Paint every backdrop and pattern now, to be shared with processes forked later."""
    for name in BACKGROUNDS:
        backdrop(name)
    for name in TEXTURES:
        pattern(name)
    grain()


@functools.cache
def backdrop(name: str) -> Image:
    """Return the backdrop of a background, (BACKDROP_SIDE, BACKDROP_SIDE, 3)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    light, tint = _RELIEFS[name](rng)
    colour = np.array(BACKGROUNDS[name], np.float32) + light[..., None] * tint
    return np.clip(colour, 0, 255).astype(np.uint8)


@functools.cache
def pattern(name: str) -> Image:
    """Return a texture as the weight of the second colour, (PATTERN_SIDE, PATTERN_SIDE) 0..255."""
    y, x = np.mgrid[0:PATTERN_SIDE, 0:PATTERN_SIDE].astype(np.float32)
    period = PATTERN_SIDE / 9
    if name == "striped":
        weight = _edge(np.sin(2 * np.pi * x / period))
    elif name == "dotted":
        u, v = x % period - period / 2, y % period - period / 2
        weight = _edge((0.32 * period - np.hypot(u, v)) / 4)
    elif name == "checkered":
        wave = np.sin(np.pi * x / period) * np.sin(np.pi * y / period)
        weight = _edge(wave * 3)
    elif name == "speckled":
        weight = _edge((_noise(np.random.default_rng(7), PATTERN_SIDE, 5) - 0.9) * 2)
    elif name == "shiny":
        middle = PATTERN_SIDE / 2
        distance = np.hypot(x - 0.82 * middle, y - 0.8 * middle) / middle
        weight = np.clip(1.0 - distance / 0.42, 0, 1)
    else:
        weight = np.zeros_like(x)
    return (weight * 255).astype(np.uint8)


@functools.cache
def grain() -> Image:
    """Return sensor noise around 128, (BACKDROP_SIDE, BACKDROP_SIDE, 3)."""
    rng = np.random.default_rng(11)
    noise = rng.standard_normal((BACKDROP_SIDE, BACKDROP_SIDE, 3), np.float32)
    return np.clip(128 + GRAIN_DEVIATION * noise, 0, 255).astype(np.uint8)


def _edge(signed: Field) -> Field:
    """Return a soft step: 0 where `signed` is negative, 1 where it is positive."""
    return np.asarray(np.clip(signed * 3 + 0.5, 0, 1), np.float32)


def _noise(
    rng: np.random.Generator, side: int, sigma_x: float, sigma_y: float | None = None
) -> Field:
    """Return smooth noise of zero mean and unit deviation, (side, side)."""
    sigma_y = sigma_x if sigma_y is None else sigma_y
    shrink = 4 if min(sigma_x, sigma_y) >= 8 else 1  # very smooth noise needs few pixels
    white = rng.standard_normal((side // shrink, side // shrink), np.float32)
    smooth = cv2.GaussianBlur(
        white, (0, 0), sigma_x / shrink, sigmaY=sigma_y / shrink, borderType=cv2.BORDER_REFLECT
    )
    if shrink > 1:
        smooth = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def _coordinates() -> tuple[Field, Field]:
    y, x = np.mgrid[0:BACKDROP_SIDE, 0:BACKDROP_SIDE].astype(np.float32)
    return x, y


_Relief = tuple[Field, NDArray[np.float32]]  # lightness and what one unit of it adds to the colour


def _tint(blue: float, green: float, red: float) -> NDArray[np.float32]:
    return np.array([blue, green, red], np.float32)


def _meadow(rng: np.random.Generator) -> _Relief:
    blades = _noise(rng, BACKDROP_SIDE, 0.8, 5)
    patches = _noise(rng, BACKDROP_SIDE, 40)
    return 0.8 * blades + 0.7 * patches, _tint(14, 24, 22)


def _calm_sea(rng: np.random.Generator) -> _Relief:
    _, y = _coordinates()
    ripples = np.sin(y / 5 + 1.8 * _noise(rng, BACKDROP_SIDE, 30, 6))
    return 0.7 * ripples + 0.6 * _noise(rng, BACKDROP_SIDE, 9, 1.2), _tint(24, 22, 14)


def _cloudy_sky(rng: np.random.Generator) -> _Relief:
    clouds = _noise(rng, BACKDROP_SIDE, 38, 22) + 0.4 * _noise(rng, BACKDROP_SIDE, 10)
    return np.asarray(np.clip(clouds, -1.2, 1.5), np.float32), _tint(10, 26, 42)


def _sandy_beach(rng: np.random.Generator) -> _Relief:
    x, y = _coordinates()
    dunes = np.sin((x + 2 * y) / 22 + 1.5 * _noise(rng, BACKDROP_SIDE, 40))
    return 0.6 * dunes + 0.7 * _noise(rng, BACKDROP_SIDE, 0.9), _tint(18, 16, 14)


def _brick_wall(rng: np.random.Generator) -> _Relief:
    x, y = _coordinates()
    height, width, mortar = 24, 56, 4
    row = y // height
    shifted = x + (row % 2) * width / 2
    joint = (y % height < mortar) | (shifted % width < mortar)
    shades = rng.standard_normal((64, 64)).astype(np.float32) * 0.6
    brick = shades[row.astype(int) % 64, (shifted // width).astype(int) % 64]
    face = brick + 0.3 * _noise(rng, BACKDROP_SIDE, 1)
    return np.where(joint, 2.6, face).astype(np.float32), _tint(34, 32, 22)


def _wooden_floor(rng: np.random.Generator) -> _Relief:
    _, y = _coordinates()
    height = 52
    board = rng.standard_normal(64).astype(np.float32)[(y // height).astype(int) % 64]
    lines = _noise(rng, BACKDROP_SIDE, 60, 1.0)
    seam = y % height < 3
    return np.where(seam, -3.0, 0.5 * board + 0.7 * lines).astype(np.float32), _tint(14, 18, 22)


def _night_sky(rng: np.random.Generator) -> _Relief:
    haze = 0.5 * _noise(rng, BACKDROP_SIDE, 60)
    glow = (_noise(rng, BACKDROP_SIDE, 1.1) > 3.1).astype(np.float32)
    return haze + 6 * cv2.GaussianBlur(glow, (0, 0), 0.8), _tint(30, 26, 26)


def _snowy_field(rng: np.random.Generator) -> _Relief:
    drifts = _noise(rng, BACKDROP_SIDE, 50, 14)
    light = 0.8 * drifts + 0.4 * _noise(rng, BACKDROP_SIDE, 1.2) - np.float32(0.4)
    return light, _tint(10, 14, 18)


_RELIEFS: Final = {
    "meadow": _meadow,
    "calm sea": _calm_sea,
    "cloudy sky": _cloudy_sky,
    "sandy beach": _sandy_beach,
    "brick wall": _brick_wall,
    "wooden floor": _wooden_floor,
    "night sky": _night_sky,
    "snowy field": _snowy_field,
}
