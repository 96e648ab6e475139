"""What stands between a fetched body and OpenCV: refuses bombs, cut files and what is no image."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from img2dataset.resizer import ResizeMode, Resizer

from pipeline.fetch.as_seen import as_seen
from pipeline.fetch.errors import FetchError
from pipeline.fetch.image_header import (
    JPEG_START,
    PNG_START,
    SCAN,
    image_size,
    jpeg_scans,
    jpeg_segments,
)
from pipeline.filters.animation import is_animated

_JPEG_END = b"\xff\xd9"
# What alone makes imghdr say JPEG, whereupon img2dataset stores the file as it is, as .jpg.
_TAKEN_FOR_JPEG = (b"JFIF", b"Exif")
_PNG_END = b"IEND"
# Encoders make 1 to 12 scans. A decoder goes over the whole picture in each, whatever it says.
_SCANS, MOST_SCANS = 10, 100
# Modes that fit the shorter side to `image_size`, so that the longer one may grow without bound.
_BY_SHORTER_SIDE = (ResizeMode.keep_ratio, ResizeMode.center_crop)


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end marker, or a WebP is shorter than it says.

    OpenCV decodes such files without an error and fills the missing part with grey.
    """
    if data.startswith(JPEG_START):
        return data.rfind(_JPEG_END, _scan_start(data)) < 0
    if data.startswith(PNG_START):
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
        return super().__call__(as_seen(data) or img_stream, blurring_bbox_list)

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
