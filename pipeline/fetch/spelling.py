"""Paths of URLs in the one spelling in which they are compared (RFC 3986, section 6.2.2)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
_ESCAPE: Final = re.compile("%([0-9A-Fa-f]{2})")
#: What a URL may hold as it is; the rest is percent-encoded.
_PLAIN: Final = "%!$&'()*+,;=:@/?#[]"


def normal_escapes(text: str) -> str:
    """Return part of a URL, percent-encoded no more than it must be, in upper case where it is."""
    return _ESCAPE.sub(_normal_escape, quote(text, safe=_PLAIN))


def normal_path(path: str) -> str:
    """Return path and query with normal escapes and no dot segments."""
    path, mark, query = normal_escapes(path).partition("?")
    return _without_dots(path) + (mark + query if query else "")


def _normal_escape(escape: re.Match[str]) -> str:
    value = int(escape[1], 16)
    return chr(value) if value in _UNRESERVED else escape[0].upper()


def _without_dots(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == ".." and kept:
            kept.pop()
        elif segment not in (".", ".."):
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
