"""What stands in a marked passage, by the marker's kind.

| marker | gives |
|---|---|
| `n: FILE#PATH FORMAT` | a value, see `tcjepa.figures.values` |
| `table: FILE PATH` | a table that the file holds, see `tcjepa.figures.tables` |
| `fill: a=FILE b=FILE`, lines below | those lines, `{a#PATH FORMAT}` replaced by values |
| `each: FILE PATH`, lines below | those lines, the last once for every item of a list, \
`{PATH FORMAT}` replaced by values of the item, — where it has none |
| `study: FILE TABLE` | a table of a study, see `tcjepa.figures.studies` |
| `plot: FILE PICTURE NAME.png` | a plot of a study, drawn if its numbers changed |
| `files:` | the list of all result files |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tcjepa.figures.markers import FigureError, Marker
from tcjepa.figures.studies import plot, study_table
from tcjepa.figures.tables import file_list, table
from tcjepa.figures.values import ABSENT, AbsentError, ResultFiles, at, formatted, referred

_PLACE: Final = re.compile(r"\{([^{}\n]+)\}")


def passage(marker: Marker, files: ResultFiles, page: Path, write: bool) -> str:
    """Return what belongs between a marker's comments; raises `FigureError` with what is wrong.

    `page` is where it stands. With `write` stale plots are drawn; without, they are an error.
    """
    if marker.kind == "n":
        return referred(marker.rest, files)
    if marker.kind == "plot":
        return f"\n{plot(marker.rest, files, page, write)}\n"
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


def _each(rest: str, files: ResultFiles) -> str:
    """Return the template's last line for every item of a list, under the lines above it."""
    first, _, template = rest.partition("\n")
    name, _, path = first.partition(" ")
    if not path.strip() or not template.strip():
        raise FigureError("each takes a file, the path of a list in it, and a template below")
    items = at(files[name], path.strip(), name)
    if not isinstance(items, list) or not items:
        raise FigureError(f"{path.strip()} of {name} is no list with items")
    *head, line = template.strip("\n").splitlines()
    shown: set[str] = set()

    def value(item: Any, place: str) -> str:
        steps, _, form = place.rpartition(" ")
        try:
            found = formatted(at(item, steps, name), form)
        except AbsentError:
            return ABSENT
        shown.add(place)
        return found

    def row(item: Any) -> str:
        return _PLACE.sub(lambda place: value(item, place[1]), line)

    rows = [row(item) for item in items]
    unknown = [place for place in _PLACE.findall(line) if place not in shown]
    if unknown:
        raise FigureError(f"no item of {path.strip()} has {', '.join(unknown)}")
    return "\n".join([*head, *rows])


def _files(rest: str, files: ResultFiles) -> str:
    if rest.strip():
        raise FigureError(f"files takes no argument, not {rest!r}")
    return file_list(files)


_BLOCKS: Final[dict[str, Callable[[str, ResultFiles], str]]] = {
    "table": _table,
    "fill": _fill,
    "each": _each,
    "study": study_table,
    "files": _files,
}

__all__ = ["passage"]
