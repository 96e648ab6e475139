"""Images as data: URLs."""

from __future__ import annotations

import base64
import io

_QUALITY = 90  # of a shrunk image's JPEG


def data_url(data: bytes, max_side: int | None) -> str | None:
    """Return an image as a data: URL; None if it is no readable JPEG, PNG or WebP.

    An image whose longer side is more than `max_side` pixels is shrunk to it and sent as JPEG;
    others are sent byte for byte.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            kind = str(picture.format).lower()
            if max_side is not None and max(picture.size) > max_side:
                small = picture.convert("RGB")
                small.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
                sink = io.BytesIO()
                small.save(sink, "JPEG", quality=_QUALITY)
                data, kind = sink.getvalue(), "jpeg"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
