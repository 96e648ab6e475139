"""From a scene graph to pixels and JPEG bytes, with OpenCV.

Deterministic: the random touches (crop of the backdrop, light, grain, JPEG quality) come from the
scene's own "paint" stream.
"""

from __future__ import annotations

import math
import random
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.scenes.textures import (
    BACKDROP_SIDE,
    BACKDROP_WINDOW,
    GRAIN_DEVIATION,
    PATTERN_SIDE,
    Image,
    backdrop,
    grain,
    pattern,
)
from pipeline.sources.scenes.vocabulary import COLOURS
from pipeline.sources.scenes.world import Scene, SceneObject, stream

_SUBPIXEL_BITS: Final = 4
_LIGHT: Final = 110  # lightness above which an object's second colour is darker
_LUMA: Final = np.array([0.11, 0.59, 0.30], np.float32)  # of blue, green, red
_WEIGHTS: Final = np.linspace(0, 1, 256, dtype=np.float32)[:, None]

Colour = NDArray[np.float32]  # (3,) blue, green, red in 0..255


def render(scene: Scene) -> Image:
    """Return a scene's pixels, (height, width, 3) blue, green, red."""
    draw = stream(scene.seed, scene.split, scene.index, "paint")
    image = _background(draw, scene)
    for item in scene.objects:
        _paint_object(draw, image, item)
    return _photograph(draw, image)


def render_jpeg(scene: Scene) -> bytes:
    """Return a scene as JPEG bytes, of a quality (72 to 95) that is the scene's own."""
    draw = stream(scene.seed, scene.split, scene.index, "jpeg")
    return encode(render(scene), draw.randint(72, 95))


def encode(image: Image, quality: int) -> bytes:
    """Return JPEG bytes of an image; `quality` in 1..100."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, f"OpenCV could not encode an image of shape {image.shape}"
    return bytes(data)


def _background(draw: random.Random, scene: Scene) -> Image:
    """Cut a window from the backdrop and bring it to the image's size."""
    zoom = draw.uniform(0.9, 1.6)
    fit = min(zoom, BACKDROP_WINDOW / max(scene.width, scene.height))
    width, height = max(1, int(scene.width * fit)), max(1, int(scene.height * fit))
    left = draw.randint(0, BACKDROP_SIDE - width)
    top = draw.randint(0, BACKDROP_SIDE - height)
    window = backdrop(scene.background)[top : top + height, left : left + width]
    image = cv2.resize(window, (scene.width, scene.height), interpolation=cv2.INTER_LINEAR)
    # OpenCV's flip: a view with a negative stride makes `resize` five times slower.
    return np.asarray(cv2.flip(image, 1) if draw.random() < 0.5 else image, np.uint8)


def _paint_object(draw: random.Random, image: Image, item: SceneObject) -> None:
    """Blend a textured, edge-smoothed polygon into the image, in place."""
    height, width = image.shape[:2]
    points = np.array(item.polygon) * (width, height)
    left, top = np.floor(points.min(axis=0)).astype(int).clip(0).tolist()
    right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
    patch = image[top : bottom + 1, left : right + 1]
    corners = ((points - (left, top)) * (1 << _SUBPIXEL_BITS)).round().astype(np.int32)
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillPoly(mask, [corners], 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)

    first, second = _colours(draw, item)
    paint = cv2.applyColorMap(_pattern_window(draw, item, mask), _ramp(first, second))
    cv2.polylines(paint, [corners], True, (0.55 * first).tolist(), 1, cv2.LINE_AA, _SUBPIXEL_BITS)
    alpha = mask.astype(np.float32) * np.float32(1 / 255)
    patch[:] = cv2.blendLinear(paint, patch, alpha, 1 - alpha)


def _colours(draw: random.Random, item: SceneObject) -> tuple[Colour, Colour]:
    """Return the object's own shade of its colour, and the texture's second colour."""
    jitter = [draw.randint(-14, 14) for _ in range(3)]
    first = np.clip(np.array(COLOURS[item.colour], np.float32) + jitter, 0, 255)
    light = float(first @ _LUMA) > _LIGHT and item.texture != "shiny"
    # Mixed with black or white, so that the hue stays the object's.
    second = first + ((0 if light else 255) - first) * draw.uniform(0.5, 0.65)
    return first, second


def _ramp(first: Colour, second: Colour) -> Image:
    """Return the 256 colours from first to second, (256, 1, 3), as OpenCV maps them."""
    return np.asarray((first + _WEIGHTS * (second - first))[:, None], np.uint8)


def _pattern_window(
    draw: random.Random, item: SceneObject, mask: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the weight of the second colour, the mask's shape, 0..255, turned with the object."""
    if item.texture == "plain":
        return np.zeros_like(mask)
    height, width = mask.shape
    diameter = max(width, height)
    scale = PATTERN_SIDE / 2 / diameter * (1.0 if item.size == "small" else draw.uniform(1.0, 1.3))
    turn = item.tilt if item.texture == "shiny" else item.tilt + draw.uniform(-0.6, 0.6)
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    middle = PATTERN_SIDE / 2
    # Maps a pixel of the patch to one of the pattern, centre to centre.
    matrix = np.array(
        [
            [cos, sin, middle - cos * width / 2 - sin * height / 2],
            [-sin, cos, middle + sin * width / 2 - cos * height / 2],
        ]
    )
    window = cv2.warpAffine(
        pattern(item.texture), matrix, (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    return np.asarray(window, np.uint8)


def _photograph(draw: random.Random, image: Image) -> Image:
    """Light the scene from one side and add grain."""
    height, width = image.shape[:2]
    base, slope = draw.uniform(0.82, 1.12), draw.uniform(0.0, 0.22)
    angle = draw.uniform(0, 2 * math.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(slope * math.cos(angle))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(slope * math.sin(angle))
    light = np.add.outer(down + np.float32(base), across)
    lit = cv2.multiply(image, cv2.merge([light, light, light]), dtype=cv2.CV_8U)
    left = draw.randint(0, BACKDROP_SIDE - width)
    top = draw.randint(0, BACKDROP_SIDE - height)
    noise = grain()[top : top + height, left : left + width]
    strength = draw.uniform(1.0, 5.0) / GRAIN_DEVIATION
    return np.asarray(cv2.addWeighted(lit, 1.0, noise, strength, -128 * strength), np.uint8)
