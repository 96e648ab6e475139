"""Images made on the spot that cost a JPEG decoder what photographs cost it."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg

from tcjepa import keyed
from tcjepa.data.decode import Pixels

#: Contrast of the noise at its coarsest octave [levels]; each finer one has `_FALL` of it, near the
#: 1/f amplitude spectrum of natural images (Field 1987).
_CONTRAST, _FALL = 55.0, 0.55
_SHAPES = 6


def photograph(number: int, side: int) -> Pixels:
    """Return an RGB image (side, side, 3): octaves of noise with a few hard-edged shapes on it."""
    draw = np.random.Generator(np.random.Philox(key=keyed.key("photograph", number)))
    image = np.full((side, side, 3), 118.0, np.float32)
    # Photographs vary in brightness much more than in colour.
    mix = np.array([[1.0, 1.0, 1.0], [0.25, 0.0, -0.25], [-0.1, 0.2, -0.1]], np.float32)
    cells, contrast = 2, _CONTRAST
    while cells <= side:
        noise = draw.standard_normal((cells, cells, 3)).astype(np.float32) * contrast
        image += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC) @ mix
        cells, contrast = 2 * cells, _FALL * contrast
    for _ in range(_SHAPES):
        centre, radius = (
            draw.integers(0, side, 2).tolist(),
            int(draw.integers(side // 20, side // 5)),
        )
        colour = draw.integers(0, 256, 3).tolist()
        if draw.random() < 0.5:
            cv2.circle(image, centre, radius, colour, -1, cv2.LINE_AA)
        else:
            corner = [place + radius for place in centre]
            cv2.rectangle(image, centre, corner, colour, -1, cv2.LINE_AA)
    return np.asarray(image.clip(0, 255), dtype=np.uint8)


def photographs(count: int, side: int) -> list[bytes]:
    """Return `count` different JPEGs of quality 90, chroma halved as cameras and the web do."""
    return [
        bytes(simplejpeg.encode_jpeg(photograph(number, side), 90, colorsubsampling="420"))
        for number in range(count)
    ]
