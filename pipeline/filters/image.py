"""What an image measures. Bytes are hostile: nothing raises, and big claims are not decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.fetch.image_header import webp_size
from pipeline.filters.animation import is_animated

#: Why an image has no measures.
DECODE_ERRORS: Final = {
    "empty": "there are no bytes",
    "unknown_format": "the bytes are no JPEG, PNG or WebP",
    "bad_header": "the header is broken or claims a side of zero pixels",
    "too_many_pixels": "the header claims more pixels than `image.max_pixels`",
    "truncated": "the file ends before the image does",
    "corrupt": "the decoder refused the content",
}

#: Side of the grid of mean colours, and bytes of a signature: 4 x 4 cells, 3 channels.
COLOUR_CELLS: Final = 4
COLOUR_BYTES: Final = COLOUR_CELLS * COLOUR_CELLS * 3

_WORKING_SIDE = 256  # longer side at which contrast and sharpness are measured, in pixels
_HASH_SIDE = 8
_DCT_SIDE = 32
_GREY_SPREAD = 8  # levels that JPEG's coarser chroma may part the channels of a grey pixel

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageMeasures:
    """Measures of one image; None where the bytes did not yield them.

    `width`, `height` and `pixels` are of the stored image, from its header. `contrast` is the
    largest standard deviation of a channel [levels of 255]: a drawing in two colours of the same
    lightness is not blank. `sharpness` is the variance of the Laplacian [levels²] with the longer
    side brought to 256 px (never enlarged). At that size, too, `entropy` is the Shannon entropy of
    the grey levels [bits] and `grey_share` the share of pixels whose channels differ by at most
    `_GREY_SPREAD` levels. `animated` says whether the stored file has more than one frame. `phash`
    is an unsigned 64-bit perceptual hash, `colours` the mean BGR of 4 x 4 cells in row order, 48
    bytes.
    """

    decode_error: str | None
    width: int | None = None
    height: int | None = None
    pixels: int | None = None
    contrast: float | None = None
    sharpness: float | None = None
    entropy: float | None = None
    grey_share: float | None = None
    animated: bool | None = None
    phash: int | None = None
    colours: bytes | None = None


def measure_image(data: bytes, max_pixels: int = 89_478_485) -> ImageMeasures:
    """Return the measures of an encoded JPEG, PNG or WebP; never raises.

    An image whose header claims more than `max_pixels` is refused before it is decoded.
    """
    size = _read_size(data)
    if isinstance(size, str):
        return ImageMeasures(decode_error=size)
    width, height = size
    known = ImageMeasures(None, width, height, width * height, animated=is_animated(data))
    if min(width, height) < 1:
        return ImageMeasures(decode_error="bad_header")
    if width * height > max_pixels:
        return replace(known, decode_error="too_many_pixels")
    image = _decode(data)
    if isinstance(image, str):
        return replace(known, decode_error=image)
    small = _fit(image, _WORKING_SIDE)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    _, deviations = cv2.meanStdDev(small)
    _, spread = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    cells = cv2.resize(small, (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA)
    return replace(
        known,
        contrast=float(deviations.max()),
        sharpness=float(spread[0, 0]) ** 2,
        entropy=_entropy(grey),
        grey_share=_grey_share(small),
        phash=perceptual_hash(grey),
        colours=cells.tobytes(),
    )


def _grey_share(image: Image) -> float:
    """Return the share of pixels whose channels are nearly equal."""
    # By channel: numpy reduces an axis of three many times slower.
    one, two, three = cv2.split(image)
    spread = cv2.subtract(cv2.max(cv2.max(one, two), three), cv2.min(cv2.min(one, two), three))
    return float((spread <= _GREY_SPREAD).mean())


def _entropy(grey: Image) -> float:
    """Return the Shannon entropy of the grey levels in bits, 0 to 8."""
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    present = shares[shares > 0]
    return float(-(present * np.log2(present)).sum()) + 0.0  # no minus zero


def perceptual_hash(grey: Image) -> int:
    """Return the 64-bit DCT hash of a grey image (H, W) as an unsigned integer.

    The hash of `imagehash.phash`: the 8 x 8 lowest frequencies of a 32 x 32 copy, each compared
    with their median, row by row from the highest bit.
    """
    tiny = cv2.resize(grey, (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(tiny.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE].copy()
    # OpenCV scales the DCT to be orthonormal, imagehash does not; only its first row and column
    # matter for a comparison with the median.
    low[0] *= np.sqrt(2)
    low[:, 0] *= np.sqrt(2)
    bits = np.packbits(low.ravel() > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


def _read_size(data: bytes) -> tuple[int, int] | str:
    """Return (width, height) as the header claims, or a decode error."""
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


def _decode(data: bytes) -> Image | str:
    """Return BGR pixels (H, W, 3), of a JPEG reduced by 2, 4 or 8 where enough remain."""
    if not data.startswith(b"\xff\xd8\xff"):
        return "truncated" if _is_cut(data) else _decode_any(data)
    options: dict[str, Any] = {
        "colorspace": "BGR",
        "fastdct": True,
        "fastupsample": True,
        "min_height": _WORKING_SIDE,
        "min_width": _WORKING_SIDE,
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
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return "corrupt"
    return "corrupt" if image is None else _pixels(image)


def _pixels(image: Any) -> Image:
    return np.asarray(image, dtype=np.uint8)


def _fit(image: Image, side: int) -> Image:
    """Return the image with its longer side at most `side` pixels, averaged down."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return _pixels(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
