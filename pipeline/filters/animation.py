"""Whether an image file is animated, from its structure alone.

What has to be converted or resized is stored as one still frame, so most animations can only be
seen in the bytes as fetched; `download` and `adopt` look there and note it in their table.
"""

from __future__ import annotations

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BLOCKS = 100_000  # of a GIF, before the second frame; beyond, it is an attack
_ANIMATION = 0x02  # flag of a VP8X chunk (RFC 9649, section 2.7)


def is_animated(data: bytes) -> bool:
    """Return whether a GIF, WebP or PNG has more than one frame; never raises.

    False for all other formats. Reads the structure and decodes nothing, so time is linear in the
    number of blocks.
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return len(data) > 20 and bool(data[20] & _ANIMATION)
    if data.startswith(_PNG):
        # The animation control chunk stands before the first data chunk (PNG, third edition).
        control = data.find(b"acTL", len(_PNG))
        return 0 <= control < data.find(b"IDAT", len(_PNG))
    return data[:6] in (b"GIF87a", b"GIF89a") and _gif_frames(data) > 1


def _gif_frames(data: bytes) -> int:
    """Return the number of frames of a GIF, counted up to two (GIF89a, sections 20 to 26)."""
    frames, place = 0, 13
    steps, most = 0, _MOST_BLOCKS + len(data) // 64  # full blocks have 256 bytes
    if len(data) > 10 and data[10] & 0x80:  # a global colour table
        place += 3 << ((data[10] & 7) + 1)
    while place < len(data) and frames < 2:
        if data[place] == 0x2C:  # an image: descriptor, local colour table, code size, blocks
            frames += 1
            flags = data[place + 9] if place + 9 < len(data) else 0
            place += 10 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0) + 1
        elif data[place] == 0x21:  # an extension: label, blocks
            place += 2
        else:  # the trailer, or damage
            break
        while place < len(data) and data[place] and steps <= most:
            place += 1 + data[place]
            steps += 1
        place += 1
        steps += 1
        if steps > most:
            break
    return frames
