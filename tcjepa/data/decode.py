"""Bytes of an image to pixels: a fixed list of formats, a pixel limit, and one kind of error.

JPEGs of the ordinary kinds go through libjpeg-turbo (simplejpeg), everything else through Pillow.
An image is opened first, which reads its header only, so that the caller can choose a crop before
anything is decoded, and how small a version of the image is enough for it.
"""

from __future__ import annotations

import io
from typing import Final, Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.schema import IMAGE_EXTENSIONS
from tcjepa.data.memory import room

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview

#: Formats by file extension. Nothing else is opened whatever the bytes say: PIL knows dozens of
#: formats, and some of its parsers are old.
_PIL_FORMATS: Final = {"jpg": ("JPEG", "MPO"), "png": ("PNG",), "webp": ("WEBP",)}
assert set(_PIL_FORMATS) == set(IMAGE_EXTENSIONS)

_WHITE: Final = (255, 255, 255, 255)
#: CMYK and YCCK need Pillow's inversion rules.
_TURBO_COLORSPACES: Final = ("YCbCr", "Gray", "RGB")
#: What libjpeg-turbo divides sides by at no loss of speed: it has vector code for these.
DIVISORS: Final = (8, 4, 2, 1)
#: Large enough for huge pages, which make a 256-px image 5% faster to write and read.
_LEAST_SCRATCH: Final = 4 * 2**20
_MOST_SCRATCH: Final = 16 * 2**20
#: libjpeg-turbo writes rows that begin at a multiple of 32 bytes past the cache, from where the
#: resize that follows has to fetch them: 6% of a 256-px image's time.
_ASKEW: Final = 16


class SampleError(Exception):
    """A sample that cannot be read; the message is a short reason for the ledger."""


class Scratch:
    """Room for decoded pixels, used again for every image; one per thread.

    A fresh array of 200 kB or more per image goes back to the system each time and its pages are
    faulted in again. Images beyond 16 MiB of pixels still get their own, so that one panorama does
    not stay in memory for the rest of the run.
    """

    def __init__(self) -> None:
        self._buffer: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def room(self, size: int) -> NDArray[np.uint8] | None:
        """Return a buffer of at least `size` bytes, or None where a fresh one is better."""
        if size > _MOST_SCRATCH:
            return None
        if size > len(self._buffer):
            self._buffer = room(max(size, _LEAST_SCRATCH) + _ASKEW)[_ASKEW:]
        return self._buffer


class OpenedImage(Protocol):
    """An image whose header was read and accepted; height and width as stored [px]."""

    height: int
    width: int

    def pixels(self, divisor: int = 1, scratch: Scratch | None = None) -> Pixels:
        """Return RGB pixels (h, w, 3) uint8, as stored: no EXIF rotation.

        Sides are divided by `divisor`, one of `DIVISORS`, and rounded up, where the format decodes
        smaller versions; otherwise they are the stored ones. With `scratch` the result is valid
        until its next use. Raises `SampleError` for broken or truncated data.
        """


def decode(data: Encoded, image_format: str, max_pixels: int) -> Pixels:
    """Return an image as RGB pixels (H, W, 3) uint8; raises as `open_image` and `pixels` do."""
    return open_image(data, image_format, max_pixels).pixels()


def open_image(data: Encoded, image_format: str, max_pixels: int) -> OpenedImage:
    """Read an image's header.

    The index's width and height are of the stored pixels. Transparent pixels are laid on white, as
    img2dataset does. Raises `SampleError` for another format, more than `max_pixels` (from the
    header, before any decoding), and for a header that cannot be read.
    """
    if image_format not in _PIL_FORMATS:
        raise SampleError(f"format {image_format!r} is not one of {', '.join(_PIL_FORMATS)}")
    if image_format == "jpg":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # libjpeg-turbo's simple interface refuses it; Pillow has the last word
        else:
            _check_size(width, height, max_pixels)
            if colorspace in _TURBO_COLORSPACES:
                return _TurboImage(data, height, width, max_pixels)
    return _PillowImage(data, _PIL_FORMATS[image_format], max_pixels)


class _TurboImage:
    def __init__(self, data: Encoded, height: int, width: int, max_pixels: int) -> None:
        self.height, self.width = height, width
        self._data, self._max_pixels = data, max_pixels

    def pixels(self, divisor: int = 1, scratch: Scratch | None = None) -> Pixels:
        height, width = -(-self.height // divisor), -(-self.width // divisor)
        try:
            decoded = simplejpeg.decode_jpeg(
                self._data,
                colorspace="RGB",
                min_height=height,
                min_width=width,
                buffer=None if scratch is None else scratch.room(3 * height * width),
            )
        except ValueError:  # also what libjpeg would only warn of
            return _PillowImage(self._data, _PIL_FORMATS["jpg"], self._max_pixels).pixels()
        return np.asarray(decoded, dtype=np.uint8)


class _PillowImage:
    def __init__(self, data: Encoded, formats: tuple[str, ...], max_pixels: int) -> None:
        try:
            self._image = Image.open(io.BytesIO(data), formats=formats)
        except Exception as error:
            raise _undecodable(error) from error
        self.width, self.height = self._image.size
        _check_size(self.width, self.height, max_pixels)

    def pixels(self, divisor: int = 1, scratch: Scratch | None = None) -> Pixels:
        del divisor, scratch  # Pillow decodes whole images into memory of its own
        try:
            with self._image as image:
                return np.asarray(_to_rgb(image), dtype=np.uint8)
        except Exception as error:
            raise _undecodable(error) from error


def _undecodable(error: Exception) -> SampleError:
    """Name what was wrong; Pillow's plugins raise OSError, SyntaxError, struct.error and more."""
    return SampleError(f"undecodable image: {type(error).__name__}: {error}"[:200])


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
