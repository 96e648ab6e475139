"""Refuse image files that end early, before img2dataset re-encodes their grey remainder."""

from __future__ import annotations

import io
from typing import Any

from img2dataset.resizer import Resizer

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
# Cameras append previews and metadata after the end marker; look for it in the file's tail.
_TAIL = 64 * 1024


def is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end marker, or a WebP is shorter than it says.

    OpenCV decodes such files without an error and fills the missing part with grey.
    """
    tail = data[-_TAIL:]
    if data.startswith(_JPEG_START):
        return _JPEG_END not in tail
    if data.startswith(_PNG_START):
        return _PNG_END not in tail
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False


class CheckedResizer(Resizer):  # type: ignore[misc]
    """img2dataset's resizer, refusing truncated files with the error `truncated image`."""

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> Any:
        """Return (bytes, width, height, original width, original height, error)."""
        if is_truncated(img_stream.getvalue()):
            return None, None, None, None, None, "truncated image"
        return super().__call__(img_stream, blurring_bbox_list)
