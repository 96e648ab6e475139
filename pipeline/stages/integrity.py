"""What stands between a fetched body and OpenCV: refuses bombs, cut files and what is no image."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import cv2
import numpy as np
from img2dataset.resizer import ResizeMode, Resizer

from pipeline.fetch.errors import FetchError
from pipeline.fetch.image_header import SCAN, image_size, jpeg_scans, jpeg_segments
from pipeline.filters.animation import is_animated

JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# What alone makes imghdr say JPEG, whereupon img2dataset stores the file as it is, as .jpg.
_TAKEN_FOR_JPEG = (b"JFIF", b"Exif")
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
# Encoders make 1 to 12 scans. A decoder goes over the whole picture in each, whatever it says.
_SCANS, MOST_SCANS = 10, 100
# Pixels; below this, what img2dataset needs for an alpha channel is no more than 320 MB.
_LARGE = 1 << 22
# Modes that fit the shorter side to `image_size`, so that the longer one may grow without bound.
_BY_SHORTER_SIDE = (ResizeMode.keep_ratio, ResizeMode.center_crop)


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end marker, or a WebP is shorter than it says.

    OpenCV decodes such files without an error and fills the missing part with grey.
    """
    if data.startswith(JPEG_START):
        return data.rfind(_JPEG_END, _scan_start(data)) < 0
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END) < 0
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _scan_start(data: bytes) -> int:
    """Return where a JPEG's first scan starts: thumbnails before it have end markers too."""
    scans = (place for marker, place in jpeg_segments(data) if marker == SCAN)
    try:
        return next(scans, len(data))
    except ValueError:
        return len(data)


def _without_alpha(data: bytes) -> io.BytesIO | None:
    """Return a large picture with an alpha channel as an opaque one; None for any other.

    img2dataset lays such a picture on white in float64, which takes 76 bytes a pixel. This is its
    own arithmetic, a strip at a time: the same bytes come out, at 9 bytes a pixel (11 where the
    file has 16 bits a channel).
    """
    width, height = image_size(data) or (0, 0)
    if width * height <= _LARGE or data.startswith(JPEG_START):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None or image.ndim != 3 or image.shape[-1] != 4:
        return None
    opaque = np.empty((*image.shape[:2], 3), np.uint8)
    rows = max(1, _LARGE // 16 // image.shape[1])
    for top in range(0, image.shape[0], rows):
        strip = image[top : top + rows]
        alpha = strip[:, :, 3, np.newaxis]
        laid = alpha / 255 * strip[..., :3] + 255 - alpha
        opaque[top : top + rows] = np.rint(laid.clip(min=0, max=255)).astype(np.uint8)
    del image, strip, alpha, laid  # before the copies below
    encoded = cv2.imencode(".bmp", opaque)[1]
    del opaque
    return io.BytesIO(encoded.data)


class CheckedResizer(Resizer):  # type: ignore[misc]
    """img2dataset's resizer, shown only images that are whole and not too large to decode.

    `max_pixels` bounds what a header claims, and what enlarging would make of it.
    """

    def __init__(self, *, max_pixels: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_pixels = max_pixels
        #: SHA-256, in hex, of the files seen that hold more than one frame. The first is stored.
        self.animated: set[str] = set()

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> Any:
        """Return (bytes, width, height, original width, original height, error)."""
        data = img_stream.getvalue()
        error = self._error(data)
        if error is not None:
            return None, None, None, None, None, str(error)
        if is_animated(data):
            self.animated.add(hashlib.sha256(data).hexdigest())
        return super().__call__(_without_alpha(data) or img_stream, blurring_bbox_list)

    def _error(self, data: bytes) -> FetchError | None:
        if data[6:10] in _TAKEN_FOR_JPEG and not data.startswith(JPEG_START):
            return FetchError("not_an_image", "another format that is labelled as a JPEG")
        size = image_size(data)
        if size is None:
            return FetchError("not_an_image", "no header of a known format")
        width, height = size
        if not self.resize_only_if_bigger and self.resize_mode in _BY_SHORTER_SIDE:
            scale = max(1.0, self.image_size / min(size))
            width, height = int(width * scale), int(height * scale)
        if width * height > self._max_pixels:
            return FetchError("too_many_pixels", "more than max_pixels in the header")
        if data.startswith(JPEG_START) and jpeg_scans(data, most := self._most_scans(size)) > most:
            return FetchError("too_many_pixels", f"more than {most} scans of a JPEG of this size")
        return FetchError("truncated", "no end marker") if is_truncated(data) else None

    def _most_scans(self, size: tuple[int, int]) -> int:
        """Return how many scans a JPEG may have: over all, 10 times `max_pixels`; at most 100."""
        return min(MOST_SCANS, _SCANS * self._max_pixels // (size[0] * size[1]))
