"""Image files that lie about their size, made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import cv2
import numpy as np
from PIL import Image

HUGE: Final = 60_000


def picture(kind: str, width: int = 47, height: int = 30, **options: object) -> bytes:
    """Return a sound image in one of Pillow's formats."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """Return a greyscale PNG of a claimed size whose pixels are what inflates from `rows`."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), *chunks]
    return b"".join([*parts, _chunk(b"IDAT", rows), _chunk(b"IEND", b"")])


def _jpeg(width: int, height: int) -> bytes:
    data = bytearray(picture("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _webp(width: int, height: int) -> bytes:
    """Return an extended WebP whose canvas is of the claimed size (at most 16384 a side)."""
    inner = picture("WEBP", lossless=True)[12:]
    canvas = (
        struct.pack("<I", 0) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    )
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _gif_screen(width: int, height: int) -> bytes:
    data = bytearray(picture("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def _gif_frame(width: int, height: int) -> bytes:
    data = bytearray(picture("GIF"))
    place = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 47, 30))
    data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def _bmp(width: int, height: int) -> bytes:
    data = bytearray(picture("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def _tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, 4)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(8)


#: Small files whose headers claim billions of pixels.
CLAIMS: Final[dict[str, bytes]] = {
    "PNG": png(HUGE, HUGE),
    "JPEG": _jpeg(HUGE, HUGE),
    "WebP": _webp(16_384, 16_384),
    "GIF, screen": _gif_screen(HUGE, HUGE),
    "GIF, frame": _gif_frame(HUGE, HUGE),
    "BMP": _bmp(HUGE, HUGE),
    "BMP, top row first": _bmp(HUGE, -HUGE),
    "TIFF": _tiff(HUGE, HUGE),
    "PNG, one row": png(2**31 - 1, 1),
    "PNG that inflates": png(HUGE, HUGE, rows=zlib.compress(bytes(10_000_000), 9)),
}
_TEXT: Final = zlib.compress(bytes(100_000_000), 9)

#: Bodies that are no picture, or a picture with something else in it; None: it decodes.
OTHERS: Final[dict[str, tuple[bytes, str | None]]] = {
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not_an_image"),
    "SVG with an entity bomb": (
        b'<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><svg>&b;</svg>',
        "not_an_image",
    ),
    "HTML": (b"<!DOCTYPE html><title>404</title>", "not_an_image"),
    "HTML that starts as a GIF": (b"GIF89a/*<html><script>1</script>*/", "too_many_pixels"),
    "JPEG that is HTML too": (
        picture("JPEG")[:-2] + b"<script>alert(1)</script>\xff\xd9",
        None,
    ),
    "ZIP": (b"PK\3\4" + bytes(100), "not_an_image"),
    "PDF": (b"%PDF-1.7\n" + bytes(100), "not_an_image"),
    "JPEG 2000": (picture("JPEG2000"), "not_an_image"),
    "AVIF": (picture("AVIF"), "not_an_image"),
    "PNM": (b"P6 60000 60000 255\n", "not_an_image"),
    "Radiance": (b"#?RADIANCE\n\n-Y 60000 +X 60000\n", "not_an_image"),
    "start of a JPEG": (b"\xff\xd8\xff", "not_an_image"),
    "PNG of no pixels": (png(0, 0), "not_an_image"),
    "PNG text bomb": (
        png(2, 2, _chunk(b"zTXt", b"k\0\0" + _TEXT), rows=zlib.compress(bytes(6))),
        None,
    ),
    "PNG profile bomb": (
        png(2, 2, _chunk(b"iCCP", b"k\0\0" + _TEXT), rows=zlib.compress(bytes(6))),
        None,
    ),
    "PNG that inflates to too much": (
        png(2, 2, rows=zlib.compress(bytes(50_000_000), 9)),
        None,
    ),
    "TIFF that names itself as its next page": (
        picture("TIFF")[:-4] + struct.pack("<I", 8),
        None,
    ),
    "cut JPEG": (picture("JPEG")[:-40], "truncated"),
}


def decodes(data: bytes) -> tuple[int, int] | None:
    """Return what OpenCV makes of a file: (width, height)."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if image is None else (image.shape[1], image.shape[0])
