"""What stands in a marked passage, by the marker's kind.

| marker | gives |
|---|---|
| `n: FILE#PATH FORMAT` | a value, see `tcjepa.figures.values` |
| `table: FILE PATH` | a table that the file holds, see `tcjepa.figures.tables` |
| `fill: a=FILE b=FILE`, lines below | those lines, `{a#PATH FORMAT}` replaced by values |
| `files:` | the list of all result files |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tcjepa.figures.markers import FigureError, Marker
from tcjepa.figures.tables import file_list, table
from tcjepa.figures.values import ResultFiles, at, referred

_PLACE: Final = re.compile(r"\{([^{}\n]+)\}")


def passage(marker: Marker, files: ResultFiles) -> str:
    """Return what belongs between a marker's comments; raises `FigureError` with what is wrong."""
    if marker.kind == "n":
        return referred(marker.rest, files)
    return f"\n{_BLOCKS[marker.kind](marker.rest, files)}\n"


def _table(rest: str, files: ResultFiles) -> str:
    name, _, path = rest.partition(" ")
    if not path.strip():
        raise FigureError("table takes a file and the path of a table in it")
    return table(at(files[name], path.strip(), name), f"{path.strip()} of {name}")


def _fill(rest: str, files: ResultFiles) -> str:
    """Return the template with its places filled; the first line says what its files are called."""
    first, _, template = rest.partition("\n")
    pairs = [item.partition("=") for item in first.split()]
    wrong = ["".join(pair) for pair in pairs if not all(pair)]
    if wrong or not template.strip():
        raise FigureError(f"fill takes a=FILE … and a template below, not {' '.join(wrong)!r}")
    aliases = {name: file for name, _, file in pairs}
    return _PLACE.sub(lambda place: referred(place[1], files, aliases), template.strip("\n"))


def _files(rest: str, files: ResultFiles) -> str:
    if rest.strip():
        raise FigureError(f"files takes no argument, not {rest!r}")
    return file_list(files)


_BLOCKS: Final[dict[str, Callable[[str, ResultFiles], str]]] = {
    "table": _table,
    "fill": _fill,
    "files": _files,
}

__all__ = ["passage"]
