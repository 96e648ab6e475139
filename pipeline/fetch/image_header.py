"""An image's width and height as its header claims them, for every format we let be decoded.

Read before OpenCV sees a byte: a header of 60,000 x 60,000 in a file of 100 bytes makes a decoder
allocate gigabytes. What is in none of these formats is not decoded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Final

Size = tuple[int, int]

JPEG_START: Final = b"\xff\xd8\xff"
PNG_START: Final = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Start of frame, any coding (T.81, table B.1): C0-CF without DHT, JPG and DAC.
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN: Final = 0xDA
_APP1: Final = 0xE1
_EXIF: Final = b"Exif\0\0"
_ORIENTATION: Final = 274
# What libjpeg takes for the start of a segment or the end of the image, wherever it looks. Skipped
# by both: stray bytes, padding, coded data (0 follows each FF there), markers without a length.
_JPEG_MARKER: Final = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
# Far more segments or frames than any picture has: this is Python, and each takes a microsecond.
_MOST_BLOCKS: Final = 100_000
_TIFF_TYPES: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_SAMPLES = 256, 257, 258, 277
_TIFF_STRIP, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 278, 322, 323
_TIFF_READ: Final = frozenset({256, 257, 258, 277, 278, 322, 323})
_TIFF_WHOLE: Final = 0xFFFFFFFF  # rows of a strip: all
_TIFF_SPARE: Final = 1 << 22  # pixels by which a tile may be larger than the picture: padding
_MOST_TAGS: Final = 4096


def image_size(data: bytes) -> Size | None:
    """Return (width, height) [px] of a JPEG, PNG, WebP, GIF, BMP or TIFF.

    None for anything else, and where the header is damaged; never raises. The size is the one that
    decides what a decoder allocates, so for GIF it covers every frame. AVIF is not read: its header
    may say less than its AV1 frames, which decoders believe.
    """
    for starts, read in _FORMATS:
        if starts(data):
            try:
                width, height = read(data)
            except (struct.error, IndexError, ValueError, KeyError, OverflowError):
                return None
            return (width, height) if width > 0 and height > 0 else None
    return None


def _jpeg(data: bytes) -> Size:
    for marker, place in jpeg_segments(data):
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        if marker == SCAN:
            break
    raise ValueError("no frame")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, place of its two bytes) of the segments, up to the end of the image.

    Raises ValueError where there are more than any picture has.
    """
    place = 2
    for _ in range(_MOST_BLOCKS):
        found = _JPEG_MARKER.search(data, place)
        if found is None or found.start() + 4 > len(data) or found[0] == b"\xff\xd9":
            return
        place = found.start()
        yield data[place + 1], place
        place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4]))  # a length counts itself
    raise ValueError("too many segments")


def jpeg_scans(data: bytes, most: int) -> int:
    """Return the number of scans of a JPEG's image; more than `most` is as good as `most` + 1."""
    count = 0
    try:
        for marker, _ in jpeg_segments(data):
            count += marker == SCAN
            if count > most:
                break
    except ValueError:
        return most + 1
    return count


def jpeg_orientation(data: bytes) -> int:
    """Return how a JPEG is to be turned: EXIF's `Orientation`, 1 to 8; 1 where it has none.

    1 is also returned for a damaged or unknown value; never raises.
    """
    try:
        for marker, place in jpeg_segments(data):
            if marker == SCAN:
                break
            if marker == _APP1 and data[place + 4 : place + 10] == _EXIF:
                end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
                return _exif_orientation(data[place + 10 : end])
    except (ValueError, struct.error):
        pass
    return 1


def _exif_orientation(exif: bytes) -> int:
    """Read the first directory of a classic TIFF; raises `struct.error` where it is cut off."""
    order = "<" if exif[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (tags,) = struct.unpack_from(order + "H", exif, start)
    for place in range(start + 2, start + 2 + 12 * min(tags, _MOST_TAGS), 12):
        (tag,) = struct.unpack_from(order + "H", exif, place)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(order + "H", exif, place + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _png(data: bytes) -> Size:
    if data[12:16] != b"IHDR":
        raise ValueError("no header chunk first")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> Size:
    """Return the logical screen, widened to every frame (GIF89a, sections 18 and 20)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    steps, most = 0, _MOST_BLOCKS + len(data) // 64  # full blocks have 256 bytes
    while place < len(data) and data[place] in (0x21, 0x2C):
        if data[place] == 0x2C and place + 10 <= len(data):
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, place + 1)
            width, height = max(width, left + wide), max(height, top + high)
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            place += 2
        while place < len(data) and data[place] and steps <= most:
            place += 1 + data[place]
            steps += 1
        place += 1
        steps += 1
        if steps > most:
            raise ValueError("too many blocks")
    return width, height


def _bmp(data: bytes) -> Size:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:  # OS/2
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height: top row first


def webp_size(data: bytes) -> Size:
    """Return the canvas of a WebP (RFC 9649, sections 2.5 to 2.7).

    Raises `ValueError` or `struct.error` for a header that is none.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no bitstream first")


def _tiff(data: bytes) -> Size:
    """Return the first directory's size, of classic and BigTIFF files.

    Decoders also allocate by the tile (or strip) and by the sample, which a file may claim to be
    larger than its picture: what no photograph needs is refused.
    """
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 43:
        (start,) = struct.unpack_from(order + "Q", data, 8)
        (tags,) = struct.unpack_from(order + "Q", data, start)
        first, step, count_kind = start + 8, 20, "Q"
    else:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (tags,) = struct.unpack_from(order + "H", data, start)
        first, step, count_kind = start + 2, 12, "I"
    room = struct.calcsize("=" + count_kind)  # of a value too: a longer one stands elsewhere
    found: dict[int, int] = {}
    for place in range(first, first + step * min(tags, _MOST_TAGS), step):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag not in _TIFF_READ or tag in found:
            continue
        (count,) = struct.unpack_from(order + count_kind, data, place + 4)
        value = place + 4 + room
        values = order + min(count, 8) * _TIFF_TYPES[kind]
        if count * struct.calcsize("=" + _TIFF_TYPES[kind]) > room:
            (value,) = struct.unpack_from(order + count_kind, data, value)
        found[tag] = max(struct.unpack_from(values, data, value))
    width, height = found[_TIFF_WIDTH], found[_TIFF_HEIGHT]
    strip = found.get(_TIFF_STRIP, _TIFF_WHOLE)
    tiles = (
        width * (0 if strip == _TIFF_WHOLE else strip),
        found.get(_TIFF_TILE_WIDTH, width) * found.get(_TIFF_TILE_HEIGHT, height),
    )
    if max(tiles) > width * height + _TIFF_SPARE:
        raise ValueError("tiles larger than the picture")
    if found.get(_TIFF_BITS, 1) > 16 or found.get(_TIFF_SAMPLES, 1) > 4:
        raise ValueError("more than RGBA of 16 bits")
    return width, height


_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[bytes], Size]], ...]] = (
    (lambda data: data.startswith(JPEG_START), _jpeg),
    (lambda data: data.startswith(PNG_START), _png),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", webp_size),
    (lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _gif),
    (lambda data: data.startswith(b"BM"), _bmp),
    (lambda data: data.startswith(TIFF_STARTS), _tiff),
)
