"""Pixels for measuring, decoded once per image. Bytes are hostile: nothing raises.

Everything that looks at a stored image (measures, perceptual hash, features of `alignment: linear`)
looks at one of two small copies: `working_copy` and, made of that, `thumbnail`. Speed decides how
they are made: OpenCV averages exactly over fractions of pixels twenty times slower than over whole
ones, so whole factors are averaged and what is left, less than 2, is interpolated.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.fetch.as_seen import opaque
from pipeline.fetch.image_header import webp_size

Image = npt.NDArray[np.uint8]

#: Longer side at which contrast and sharpness are measured [px].
WORKING_SIDE: Final = 256
#: Side of the square thumbnail [px].
THUMBNAIL_SIDE: Final = 64


def read_size(data: bytes) -> tuple[int, int] | str:
    """Return (width, height) as the header claims, or one of `image.DECODE_ERRORS`."""
    if not data:
        return "empty"
    try:
        if data.startswith(b"\xff\xd8\xff"):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            return int(width), int(height)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
            return int(width), int(height)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return webp_size(data)
    except (ValueError, KeyError, struct.error):  # simplejpeg: KeyError for an unknown subsampling
        return "bad_header"
    return "unknown_format"


def decode(data: bytes) -> Image | str:
    """Return BGR pixels (H, W, 3) or an error.

    JPEGs are reduced by 2, 4 or 8 if their longer side keeps `WORKING_SIDE`.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return "truncated" if _is_cut(data) else _decode_any(data)
    size = read_size(data)
    longer = "min_width" if isinstance(size, tuple) and size[0] >= size[1] else "min_height"
    options: dict[str, Any] = {
        "colorspace": "BGR",
        "fastdct": True,
        "fastupsample": True,
        longer: WORKING_SIDE,
    }
    try:
        return _pixels(simplejpeg.decode_jpeg(data, **options))
    except ValueError as error:
        if "premature end" in str(error).lower():
            return "truncated"
    try:  # stray bytes between segments are common on the web and harmless
        return _pixels(simplejpeg.decode_jpeg(data, strict=False, **options))
    except ValueError:
        return _decode_any(data)  # CMYK


def _is_cut(data: bytes) -> bool:
    """Return whether a PNG lacks its end chunk, or a WebP is shorter than it says."""
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return b"IEND" not in data


def _decode_any(data: bytes) -> Image | str:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return "corrupt"
    if image is None:
        return "corrupt"
    plain = opaque(image)  # adopted images may have what a download no longer has
    return plain if plain.ndim == 3 else _pixels(cv2.cvtColor(plain, cv2.COLOR_GRAY2BGR))


def _pixels(image: Any) -> Image:
    return np.asarray(image, dtype=np.uint8)


def working_copy(image: Image) -> Image:
    """Return the image (H, W, 3) with its longer side at most `WORKING_SIDE`; never enlarged."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= WORKING_SIDE:
        return image
    if (factor := longer // WORKING_SIDE) > 1:
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        image = _pixels(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    scale = WORKING_SIDE / longer
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _pixels(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))


def thumbnail(working: Image) -> Image:
    """Return a working copy squeezed to (`THUMBNAIL_SIDE`, `THUMBNAIL_SIDE`, 3)."""
    # At most halved by interpolation, which then is the mean of what it leaves out.
    side = 2 * THUMBNAIL_SIDE
    twice = cv2.resize(working, (side, side), interpolation=cv2.INTER_LINEAR)
    return halved(_pixels(twice))


def halved(image: Image) -> Image:
    """Return means of 2 x 2 pixels of an image (2H, 2W, …) as (H, W, …)."""
    height, width = image.shape[:2]
    return _pixels(cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA))


def thumbnail_of(data: bytes) -> Image | None:
    """Return the thumbnail of an encoded image, or None if it can't be decoded; never raises."""
    image = decode(data) if data else "empty"
    return None if isinstance(image, str) else thumbnail(working_copy(image))
