"""Refuse image files that end early, before img2dataset re-encodes their grey remainder."""

from __future__ import annotations

import io
from typing import Any

from img2dataset.resizer import Resizer

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_JPEG_SCAN = 0xDA


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end marker, or a WebP is shorter than it says.

    OpenCV decodes such files without an error and fills the missing part with grey.
    """
    if data.startswith(_JPEG_START):
        return data.rfind(_JPEG_END, _scan_start(data)) < 0
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END) < 0
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


def _scan_start(data: bytes) -> int:
    """Return where a JPEG's first scan starts: thumbnails before it have end markers too."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _JPEG_SCAN:
        if data[place + 1] == 0xFF:  # padding before a marker
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return place


class CheckedResizer(Resizer):  # type: ignore[misc]
    """img2dataset's resizer, refusing truncated files with the error `truncated image`."""

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> Any:
        """Return (bytes, width, height, original width, original height, error)."""
        if is_truncated(img_stream.getvalue()):
            return None, None, None, None, None, "truncated image"
        return super().__call__(img_stream, blurring_bbox_list)
