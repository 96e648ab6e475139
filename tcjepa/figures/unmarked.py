"""Numbers that look like results and stand outside every marker, where nothing keeps them true.

A number looks like a result if it has decimals, or is a share, a rate or a multiple; other whole
numbers are let be, and so are tens of percent, in which rates of noise are given. In code, fenced
or between backticks, it is a setting: so `λ = 0.1` is written as code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from tcjepa.figures.markers import TOKEN, Fault, Marker

#: Pages that tell results; elsewhere decimals are defaults, limits and other people's figures.
RESULT_PAGES: Final = (
    "README.md",
    "docs/results.md",
    "docs/findings.md",
    "docs/analyses.md",
    "docs/decisions.md",
)
_RESULT: Final = re.compile(
    r"(?<![\w.,/#=-])(?!(?:\d?0|100)\s?%)[+−-]?\d[\d,]*"
    r"(?:\.\d+(?![\w.]|/\d)|½|(?=(?:\s?(?:%(?! interval)|±|images/s|points\b|times\b)|x\b)))"
)


def unmarked(text: str, found: Sequence[Marker]) -> Iterator[Fault]:
    """Yield the first result-like number of each line outside markers and code."""
    for marker in reversed(found):
        text = text[: marker.start] + _blank(text[marker.start : marker.end]) + text[marker.end :]
    text = TOKEN.sub(lambda token: _blank(token[0]), text)
    for line, content in enumerate(text.splitlines(), 1):
        if number := _RESULT.search(content):
            yield Fault(
                line,
                f"{number[0]!r} looks like a result but no marker says which file it is from; "
                "mark it, or write it as code if it is a setting",
            )


def _blank(text: str) -> str:
    """Return as many lines of nothing that matches."""
    return re.sub(r"[^\n]", "\0", text)


__all__ = ["RESULT_PAGES", "unmarked"]
