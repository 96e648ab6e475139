"""Content codings undone, within bounds: servers compress although we ask them not to."""

from __future__ import annotations

import zlib
from typing import Final

from pipeline.fetch.errors import FetchError

_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_START: Final = b"\x1f\x8b"
_UNREADABLE: Final = {"br", "zstd", "compress", "x-compress"}


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """Return a body without its content coding, a Content-Encoding header's value.

    A body that plainly isn't compressed, and a coding that doesn't exist (some servers say
    `binary` or `utf-8`), leave it as it is. At most `limit` bytes come out, in as much memory.

    Raises `FetchError`: `too_large`, or `bad_encoding` for several codings on top of each other,
    one that we don't read, and a stream that is damaged or ends early.
    """
    names = [name.strip().lower() for name in coding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return body
    if len(names) > 1 or names[0] in _UNREADABLE:
        raise FetchError("bad_encoding", "a content coding other than one of gzip and deflate")
    if names[0] in ("gzip", "x-gzip"):
        return _inflate(body, _GZIP, limit) if body.startswith(_GZIP_START) else body
    if names[0] == "deflate":
        # The standard says zlib's wrapping; some servers send the bare stream.
        wrapped = len(body) > 1 and int.from_bytes(body[:2]) % 31 == 0 and body[0] & 15 == 8
        return _inflate(body, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS, limit)
    return body


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        # One byte more than allowed is enough to know.
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise FetchError("bad_encoding", "damaged compressed body") from error
    if len(data) > limit:
        raise FetchError("too_large", "more bytes than max_bytes once decompressed")
    if not stream.eof:
        raise FetchError("bad_encoding", "the compressed body ends early")
    return data
