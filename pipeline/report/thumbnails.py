"""Stored images as small data: URIs. Their bytes are hostile: nothing raises or blows up."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import pyarrow as pa

from pipeline.stages.images import read_images
from pipeline.storage import Directory

#: Longer side of a thumbnail, in pixels; shown at half to three quarters of that.
SIDE = 160
_QUALITY = 72
# Stored images are resized; one that is still larger is not worth 150 MB for a thumbnail.
_MAX_PIXELS = 36_000_000
_PREFIX = "data:image/jpeg;base64,"


@dataclass
class Thumbnails:
    """Makes thumbnails until `budget` characters of data: URIs are spent."""

    run: Directory
    budget: int
    left_out: int = 0

    def uri(self, image: pa.Table | None) -> str | None:
        """Return an image's data: URI; None if it cannot be read, or the budget is spent.

        `image` is a one-row table with the columns that `read_images` takes.
        """
        if image is None:
            return None
        if self.budget <= 0:
            self.left_out += 1
            return None
        try:
            data = read_images(self.run, image)[0]
        except OSError:  # a raw tar that was deleted to save space, or is out of reach
            return None
        thumbnail = shrink(data)
        if thumbnail is None:
            return None
        uri = _PREFIX + base64.b64encode(thumbnail).decode()
        self.budget -= len(uri)
        return uri


def shrink(data: bytes) -> bytes | None:
    """Return an encoded image as a small JPEG on a white ground; None if it does not decode."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.draft("RGB", (SIDE, SIDE))  # JPEG: decoded at a fraction of its size
            image.thumbnail((SIDE, SIDE))
            small = image.convert("RGBA")
    except Exception:  # Pillow's decoders raise anything on hostile bytes
        return None
    ground = Image.new("RGB", small.size, "white")
    ground.paste(small, mask=small)
    target = io.BytesIO()
    ground.save(target, "JPEG", quality=_QUALITY, optimize=True)
    return target.getvalue()


__all__ = ["SIDE", "Thumbnails", "shrink"]
