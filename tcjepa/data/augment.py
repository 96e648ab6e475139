"""Crops: the random one for training, keyed by (seed, epoch, uid), and the evaluation one."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tcjepa import keyed
from tcjepa.data.decode import Pixels

_TRIES: Final = 10
#: ImageNet's evaluation crop: 224 of 256.
_EVALUATION_MARGIN: Final = 256 / 224


class Box(NamedTuple):
    """A rectangle of an image [px]."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: NDArray[np.float64],
) -> Box:
    """Return torchvision's `RandomResizedCrop` box for uniform draws (10, 4) in [0, 1).

    Area is uniform in `scale`, log aspect uniform in `ratio`, position uniform; after ten tries
    that do not fit, the largest centred box with an allowed aspect.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw, top_draw, left_draw in draws.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def random_crop(
    pixels: Pixels,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    crop_key: int,
) -> Pixels:
    """Return a random crop (3, size, size) uint8 of an image (H, W, 3); a function of the key."""
    draws = keyed.uniform(crop_key, 4 * _TRIES).reshape(_TRIES, 4)
    box = random_box(pixels.shape[0], pixels.shape[1], scale, ratio, draws)
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    return _resize(cut, size, size).transpose(2, 0, 1)


def centre_crop(pixels: Pixels, size: int) -> Pixels:
    """Return ImageNet's evaluation crop (3, size, size) uint8 of an image (H, W, 3).

    The shorter side is resized to 256/224 of `size`, then the centre is cut out.
    """
    height, width = pixels.shape[:2]
    short = round(size * _EVALUATION_MARGIN)
    if height <= width:
        resized = _resize(pixels, short, int(short * width / height))
    else:
        resized = _resize(pixels, int(short * height / width), short)
    top = round((resized.shape[0] - size) / 2.0)
    left = round((resized.shape[1] - size) / 2.0)
    return resized[top : top + size, left : left + size].transpose(2, 0, 1)


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize an image (H, W, 3).

    Enlarging is bilinear, which is what torchvision's default does too. Shrinking averages areas:
    OpenCV's bilinear filter has a fixed 2x2 footprint and would alias, torchvision's widens.
    """
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.uint8)
