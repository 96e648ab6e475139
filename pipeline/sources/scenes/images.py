"""The bytes behind each URL, the faults that live in an image included."""

from __future__ import annotations

import random
from typing import Final

import cv2
import numpy as np

from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.faults import original, url_fault
from pipeline.sources.scenes.render import encode, render, render_jpeg
from pipeline.sources.scenes.textures import Image
from pipeline.sources.scenes.world import Scene, Split, scene, stream

_TINY_SIDES: Final = (8, 24)  # longer side [px]
_EXTREME_ASPECTS: Final = (5.0, 8.0)
_COPY_SCALES: Final = (0.7, 0.95)
_COPY_QUALITIES: Final = (55, 85)


def image_bytes(config: ScenesConfig, split: Split, index: int) -> bytes:
    """Return the body of a row's image, a pure function of the arguments.

    A JPEG of the scene shown; of another size for `tiny`, `extreme_aspect` and `near_duplicate`;
    of one colour for `blank`; cut short for `truncated`.
    """
    fault = url_fault(config, split, index)
    shown = scene(config, split, original(config, split, index))
    draw = stream(config.seed, split, index, "image fault")
    if fault == "truncated":
        data = render_jpeg(shown)
        return data[: int(len(data) * draw.uniform(0.3, 0.7))]
    if fault == "blank":
        colour = [draw.randrange(256) for _ in range(3)]
        return encode(np.full((shown.height, shown.width, 3), colour, np.uint8), 90)
    if fault in ("tiny", "extreme_aspect", "near_duplicate"):
        width, height = _faulty_size(config, fault, shown, draw)
        quality = draw.randint(*_COPY_QUALITIES)
        return encode(_resize(render(shown), width, height), quality)
    return render_jpeg(shown)


def _faulty_size(
    config: ScenesConfig, fault: str, shown: Scene, draw: random.Random
) -> tuple[int, int]:
    if fault == "extreme_aspect":
        long, short = config.max_side, round(config.max_side / draw.uniform(*_EXTREME_ASPECTS))
        return (long, short) if draw.random() < 0.5 else (short, long)
    if fault == "tiny":
        scale = draw.randint(*_TINY_SIDES) / max(shown.width, shown.height)
    else:
        scale = draw.uniform(*_COPY_SCALES)
    return max(1, round(shown.width * scale)), max(1, round(shown.height * scale))


def _resize(image: Image, width: int, height: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
