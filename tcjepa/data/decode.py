"""Bytes of an image to pixels: a fixed list of formats, a pixel limit, and one kind of error."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.schema import IMAGE_EXTENSIONS

Pixels = NDArray[np.uint8]

#: Formats by file extension. Nothing else is opened whatever the bytes say: PIL knows dozens of
#: formats, and some of its parsers are old.
_PIL_FORMATS: Final = {"jpg": ("JPEG", "MPO"), "png": ("PNG",), "webp": ("WEBP",)}
assert set(_PIL_FORMATS) == set(IMAGE_EXTENSIONS)

_WHITE: Final = (255, 255, 255, 255)


class SampleError(Exception):
    """A sample that cannot be read; the message is a short reason for the ledger."""


def decode(data: bytes, image_format: str, max_pixels: int) -> Pixels:
    """Return an image as RGB pixels (H, W, 3) uint8, as stored: no EXIF rotation.

    The index's width and height are of the stored pixels. Transparent pixels are laid on white, as
    img2dataset does. Raises `SampleError` for another format, more than `max_pixels` (from the
    header, before any decoding), and for broken or truncated data.
    """
    if image_format not in _PIL_FORMATS:
        raise SampleError(f"format {image_format!r} is not one of {', '.join(_PIL_FORMATS)}")
    if image_format == "jpg":
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is not None:
            return pixels
    return _decode_pil(data, _PIL_FORMATS[image_format], max_pixels)


def _decode_jpeg(data: bytes, max_pixels: int) -> Pixels | None:
    """Return an ordinary JPEG's pixels; None for what libjpeg-turbo's simple interface refuses."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            return None  # CMYK and YCCK need Pillow's inversion rules
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"), dtype=np.uint8)
    except ValueError:
        return None


def _decode_pil(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_size(*image.size, max_pixels)
            return np.asarray(_to_rgb(image), dtype=np.uint8)
    except SampleError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise SampleError(f"undecodable image: {type(error).__name__}: {error}"[:200]) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it to white
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, _WHITE)
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise SampleError(f"{width} x {height} pixels, more than max_pixels = {max_pixels}")
