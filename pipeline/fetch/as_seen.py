"""A picture as its viewers see it: upright, opaque, 8 bits a channel.

img2dataset stores other pixels: it drops the orientation that a camera noted, and OpenCV, when
asked to write 16 bits a channel in a format of 8, makes everything from 255 on white.
"""

from __future__ import annotations

import io
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.fetch.image_header import (
    JPEG_START,
    PNG_START,
    TIFF_STARTS,
    image_size,
    jpeg_orientation,
)

Pixels = npt.NDArray[np.uint8]

# Pixels; below this, what img2dataset needs for an alpha channel is no more than 320 MB.
_LARGE: Final = 1 << 22
_STRIP: Final = 1 << 18  # pixels
_PNG_DEPTH: Final = 24  # where the header says how many bits a channel has
#: EXIF orientation -> whether to transpose, and then to flip rows, columns (EXIF 2.32, 4.6.4 A).
_TURNS: Final = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def as_seen(data: bytes) -> io.BytesIO | None:
    """Return a picture for img2dataset to store, as a BMP; None where it stores it rightly itself.

    Of a large picture with an alpha channel it would make the same, but lays it on white in
    float64, which takes 76 bytes a pixel; here it is 9 (11 where the file has 16 bits a channel).
    A picture that cannot be decoded is left for img2dataset to refuse.
    """
    if data.startswith(JPEG_START):
        turn = _TURNS.get(jpeg_orientation(data))
        image = None if turn is None else _decoded(data, cv2.IMREAD_COLOR)
        return None if image is None or turn is None else _bitmap(_turned(image, *turn))
    width, height = image_size(data) or (0, 0)
    deep = data.startswith(TIFF_STARTS)
    deep |= data.startswith(PNG_START) and data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"
    if not deep and width * height <= _LARGE:
        return None
    image = _decoded(data, cv2.IMREAD_UNCHANGED)
    if image is None or (image.dtype == np.uint8 and (image.ndim != 3 or image.shape[-1] != 4)):
        return None
    plain = opaque(image)
    del image  # before the copies that encoding makes
    return _bitmap(plain)


def opaque(image: npt.NDArray[Any]) -> Pixels:
    """Return (H, W) or (H, W, 3) uint8 of what OpenCV decoded: (H, W) or (H, W, 3 or 4) uint8/16.

    16 bits are cut to the upper 8, as Pillow and OpenCV's own conversions do. An alpha channel is
    laid on white by img2dataset's arithmetic, a strip at a time.
    """
    plain = np.empty((*image.shape[:2], 3)[: image.ndim], np.uint8)
    rows = max(1, _STRIP // image.shape[1])
    for top in range(0, image.shape[0], rows):
        strip = image[top : top + rows]
        if strip.dtype == np.uint16:
            strip = (strip >> 8).astype(np.uint8)
        if strip.ndim == 3 and strip.shape[-1] == 4:
            alpha = strip[:, :, 3, np.newaxis]
            laid = alpha / 255 * strip[..., :3] + 255 - alpha
            strip = np.rint(laid.clip(min=0, max=255)).astype(np.uint8)
        plain[top : top + rows] = strip
    return plain


def _decoded(data: bytes, how: int) -> npt.NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), how | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def _turned(
    image: npt.NDArray[Any], transpose: bool, rows: bool, columns: bool
) -> npt.NDArray[Any]:
    turned = image.swapaxes(0, 1) if transpose else image
    return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if columns else 1])


def _bitmap(image: npt.NDArray[Any]) -> io.BytesIO:
    return io.BytesIO(cv2.imencode(".bmp", image)[1].data)
