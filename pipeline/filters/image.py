"""What an image measures. Bytes are hostile: nothing raises, and big claims are not decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np

from pipeline.filters.animation import is_animated
from pipeline.filters.pixels import Image, decode, halved, read_size, thumbnail, working_copy

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

_HASH_SIDE = 8
_GREY_SPREAD = 8  # levels that JPEG's coarser chroma may part the channels of a grey pixel


@dataclass(frozen=True)
class ImageMeasures:
    """Measures of one image; None where the bytes did not yield them.

    `width`, `height` and `pixels` are of the stored image, from its header. `contrast` is the
    largest standard deviation of a channel [levels of 255]: a drawing in two colours of the same
    lightness is not blank. `sharpness` is the variance of the Laplacian [levels²] with the longer
    side brought to 256 px (`pixels.working_copy`). At that size, too, `entropy` is the Shannon
    entropy of the grey levels [bits] and `grey_share` the share of pixels whose channels differ by
    at most `_GREY_SPREAD` levels. `animated` says whether the stored file has more than one frame.
    `phash` is an unsigned 64-bit perceptual hash, `colours` the mean BGR of 4 x 4 cells in row
    order, 48 bytes.
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
    return examine_image(data, max_pixels)[0]


def examine_image(data: bytes, max_pixels: int) -> tuple[ImageMeasures, Image | None]:
    """Return `measure_image` and the thumbnail it was partly made from; None with an error."""
    size = read_size(data)
    if isinstance(size, str):
        return ImageMeasures(decode_error=size), None
    width, height = size
    known = ImageMeasures(None, width, height, width * height, animated=is_animated(data))
    if min(width, height) < 1:
        return ImageMeasures(decode_error="bad_header"), None
    if width * height > max_pixels:
        return replace(known, decode_error="too_many_pixels"), None
    image = decode(data)
    if isinstance(image, str):
        return replace(known, decode_error=image), None
    working = working_copy(image)
    small = thumbnail(working)
    grey = cv2.cvtColor(working, cv2.COLOR_BGR2GRAY)
    _, deviations = cv2.meanStdDev(working)
    _, spread = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    cells = cv2.resize(small, (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA)
    measures = replace(
        known,
        contrast=float(deviations.max()),
        sharpness=float(spread[0, 0]) ** 2,
        entropy=_entropy(grey),
        grey_share=_grey_share(working),
        phash=perceptual_hash(small),
        colours=cells.tobytes(),
    )
    return measures, small


def _grey_share(image: Image) -> float:
    """Return the share of pixels whose channels are nearly equal."""
    # By channel: numpy reduces an axis of three many times slower.
    one, two, three = cv2.split(image)
    spread = cv2.subtract(cv2.max(cv2.max(one, two), three), cv2.min(cv2.min(one, two), three))
    grey = cv2.countNonZero(cv2.compare(spread, _GREY_SPREAD, cv2.CMP_LE))
    return float(grey / spread.size)


def _entropy(grey: Image) -> float:
    """Return the Shannon entropy of the grey levels in bits, 0 to 8."""
    shares = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel() / grey.size
    present = shares[shares > 0].astype(np.float64)
    return float(-(present * np.log2(present)).sum()) + 0.0  # no minus zero


def perceptual_hash(small: Image) -> int:
    """Return the 64-bit DCT hash of a BGR thumbnail as an unsigned integer.

    The hash of `imagehash.phash`: the 8 x 8 lowest frequencies of a 32 x 32 copy, each compared
    with their median, row by row from the highest bit. A few bits may differ, as both resize in
    their own ways.
    """
    grey = cv2.cvtColor(halved(small), cv2.COLOR_BGR2GRAY)
    low = cv2.dct(grey.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE].copy()
    # OpenCV scales the DCT to be orthonormal, imagehash does not; only its first row and column
    # matter for a comparison with the median.
    low[0] *= np.sqrt(2)
    low[:, 0] *= np.sqrt(2)
    bits = np.packbits(low.ravel() > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")
