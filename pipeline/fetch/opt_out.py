"""X-Robots-Tag: what a server says may not be done with what it sends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

# Directives that have a value after a colon; any other word there names a crawler.
_VALUED: Final = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
_NOISE: Final = str.maketrans("\"';", "   ")


def opted_out(values: Iterable[str], token: str | None, directives: Iterable[str]) -> bool:
    """Return whether an X-Robots-Tag header forbids, to us or to all, one of some uses.

    The standard has no grammar, so reading is generous: `*: noai`, `noai noimageai` and `"noai";`
    forbid as much as `noai`. A crawler's name holds up to the next name or the header's end, and
    `none` is noindex and nofollow.
    """
    forbidden = {directive.lower() for directive in directives}
    if "nofollow" in forbidden or "noindex" in forbidden:
        forbidden.add("none")
    ours = {"*", (token or "*").lower()}
    return bool(forbidden) and any(
        word in forbidden and scope in ours
        for value in values
        for scope, word in _words(value, forbidden)
    )


def _words(value: str, forbidden: set[str]) -> Iterator[tuple[str, str]]:
    """Yield each directive of a header with the crawler that it is for."""
    scope = "*"
    for piece in value.lower().translate(_NOISE).split(","):
        *named, last = map(str.split, piece.split(":"))
        for words in named:
            name = words.pop() if words else ""
            yield from ((scope, word) for word in words)
            if name in _VALUED:
                break
            if name in forbidden:
                yield scope, name
            elif name == "*" or any(map(str.isalpha, name)):  # the rest is the time in a date
                scope = name.partition("/")[0]
        else:
            yield from ((scope, word) for word in last)
