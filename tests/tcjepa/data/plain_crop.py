"""The loader's crop as one would write it: the whole image decoded, cut and resized."""

from __future__ import annotations

import cv2
import numpy as np

from tcjepa import keyed
from tcjepa.data.augment import random_box
from tcjepa.data.decode import Pixels, decode


def plain_crop(
    data: bytes,
    image_format: str,
    size: int,
    ranges: tuple[tuple[float, float], tuple[float, float]],
    crop_key: int,
) -> Pixels:
    """Return a crop (size, size, 3) with scale and ratio in `ranges`."""
    pixels = decode(data, image_format, 10**8)
    tries = np.reshape(keyed.draws(crop_key, 40), (10, 4)).tolist()
    top, left, height, width = random_box(*pixels.shape[:2], *ranges, tries)
    cut = pixels[top : top + height, left : left + width]
    within = height <= 2 * size and width <= 2 * size
    method = cv2.INTER_LINEAR if within or min(height, width) < size else cv2.INTER_AREA
    return np.asarray(cv2.resize(cut, (size, size), interpolation=method), dtype=np.uint8)
