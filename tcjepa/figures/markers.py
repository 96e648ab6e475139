"""Marked passages of a Markdown page: what is generated, from what, and where it stands.

A passage lies between two HTML comments, which GitHub does not show:

    <!-- n: FILE#PATH FORMAT -->1.27<!-- /n -->       a value, within a line

    <!-- table: FILE NAME -->                         a block: `table`, `fill`, `each`, `study`,
    | … |                                             `plot`, `files`: `tcjepa.figures.blocks`
    <!-- /table -->

Comments in code, fenced or between backticks, are examples and no markers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

INLINE: Final = "n"
BLOCKS: Final = ("table", "fill", "each", "study", "plot", "files")

#: Code, which holds no markers, and comments, whose `body` may be one.
TOKEN: Final = re.compile(
    r"(?P<fence>^[ ]{0,3}(?P<bars>```+|~~~+)[^\n]*\n.*?(?:^[ ]{0,3}(?P=bars)[ \t]*$|\Z))"
    r"|(?P<code>(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*(?:\n|<!--)).)+?(?<!`)(?P=ticks)(?!`))"
    r"|<!--\s*(?P<body>.*?)\s*-->",
    re.MULTILINE | re.DOTALL,
)
_OPENING: Final = re.compile(rf"(?P<kind>{'|'.join((INLINE, *BLOCKS))}):\s*(?P<rest>.*)", re.DOTALL)
_CLOSING: Final = re.compile(r"/\s*\w+")
_LINE_START: Final = re.compile(r"[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*")


class FigureError(ValueError):
    """A marker, or the result file it names, is wrong; the message says how."""


@dataclass(frozen=True)
class Marker:
    """One marked passage: `text[start:end]` is what is generated from `rest` by `kind`."""

    kind: str
    rest: str
    line: int
    start: int
    end: int

    def __str__(self) -> str:
        first = self.rest.partition("\n")[0].strip()
        return f"<!-- {self.kind}: {first}{' …' if first != self.rest.strip() else ''} -->"


@dataclass(frozen=True)
class Fault:
    """Something wrong at a line of a page, numbered from 1."""

    line: int
    message: str


def markers(text: str) -> tuple[list[Marker], list[Fault]]:
    """Return a page's marked passages in order, and what is wrong with how they are marked."""
    found: list[Marker] = []
    faults: list[Fault] = []
    position = 0
    while token := TOKEN.search(text, position):
        position = token.end()
        body = token["body"]
        if body is None:
            continue
        line = text.count("\n", 0, token.start()) + 1
        opening = _OPENING.fullmatch(body)
        if opening is None:
            if _CLOSING.fullmatch(body):
                faults.append(Fault(line, f"<!-- {body} --> closes a marker that is not open"))
            continue
        kind = opening["kind"]
        end = _closing(text, token.end(), kind)
        marker = Marker(kind, opening["rest"], line, token.end(), end[0] if end else -1)
        if end is None:
            where = " on its line" if kind == INLINE else " before the next one, or at all"
            faults.append(Fault(line, f"{marker} is not closed by <!-- /{kind} -->{where}"))
            continue
        wrong = _misplaced(text, marker, token.start())
        if wrong:
            faults.append(Fault(line, f"{marker} {wrong}"))
        found.append(marker)
        position = end[1]
    return found, faults


def rewritten(text: str, found: list[Marker], passage: Callable[[Marker], str]) -> str:
    """Return the page with every marked passage replaced by `passage(marker)`."""

    def pieces() -> Iterator[str]:
        position = 0
        for marker in found:
            yield text[position : marker.start]
            yield passage(marker)
            position = marker.end
        yield text[position:]

    return "".join(pieces())


def _closing(text: str, start: int, kind: str) -> tuple[int, int] | None:
    """Return where the closing comment begins and ends; None if another marker comes first."""
    for token in re.compile(r"<!--\s*(?P<body>.*?)\s*-->", re.DOTALL).finditer(text, start):
        if kind == INLINE and "\n" in text[start : token.start()]:
            return None
        if token["body"].replace(" ", "") == f"/{kind}":
            return token.start(), token.end()
        if _OPENING.fullmatch(token["body"]) or _CLOSING.fullmatch(token["body"]):
            return None
    return None


def _misplaced(text: str, marker: Marker, opens: int) -> str | None:
    """Return why Markdown would show the passage as raw HTML or not as its own block, if so."""
    before = text[text.rfind("\n", 0, opens) + 1 : opens]
    if marker.kind == INLINE:
        if _LINE_START.fullmatch(before):
            return "begins a line, where Markdown takes it for a block of HTML: put a word before"
        return None
    after = text[marker.end :].partition("\n")[0].partition("-->")[2]
    if before.strip() or after.strip() or not text[marker.start : marker.end].startswith("\n"):
        return "shares a line with other text: a block's comments stand on lines of their own"
    return None


__all__ = ["BLOCKS", "INLINE", "TOKEN", "Fault", "FigureError", "Marker", "markers", "rewritten"]
