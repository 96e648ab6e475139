"""Values of the result files, looked up by reference and put into words.

A reference is `FILE#PATH FORMAT`. FILE is a JSON file in docs/results. PATH goes down from its top,
steps parted by "/": a key, an item's number in a list, or its `name`, `arm` or `curve`. Two
references joined by `over` or `minus` give the ratio or difference of two values.

FORMAT is Python's (`.1f`, `,d`, `.0%`, `+.2f`, `z.1f` without a minus before 0; `s` for text), or

    .1p      a share in percent without the sign: 0.526 -> 52.6
    min      seconds as minutes: 394 -> 6 min 34 s

and may be followed by

    ±        52.6 ± 1.3, of `value` and `error`
    ()       1.27 (1.26–1.28), of `median`, `ratio` or `value` with `low` and `high`, `ratio_range`,
             or `interval` (`student` where there is none)
    /        0.98 / 0.95, of a list
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tcjepa.figures.markers import FigureError

ABSENT: Final = "—"
#: What every result file says of itself.
PROVENANCE: Final = ("command", "date", "hardware")
_STEP: Final = re.compile(r"(?<! )/(?! )")
_NAMES: Final = ("name", "arm", "curve")
_CENTRES: Final = ("median", "ratio", "value")
_RANGES: Final = ("ratio_range", "interval", "student")
_ERRORS: Final = ("error", "half_width")


class AbsentError(FigureError):
    """A result file has no value at a path."""


class ResultFiles:
    """The JSON files of a folder, read when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    @cached_property
    def names(self) -> list[str]:
        """Names of all result files, sorted."""
        return sorted(path.name for path in self.folder.glob("*.json"))

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return a file's contents; raises `FigureError` if it is absent or says too little."""
        if name not in self._read:
            if name not in self.names:
                raise FigureError(
                    f"there is no result file {name}; there are {_listed(self.names)}"
                )
            try:
                content = json.loads((self.folder / name).read_text())
            except ValueError as error:
                raise FigureError(f"{name} is no JSON: {error}") from error
            lacks = [key for key in PROVENANCE if not _get(content, key)]
            if lacks:
                raise FigureError(
                    f"{name} does not say its {_listed(lacks)}: every result file has "
                    f"{_listed(PROVENANCE)}, so that a reader can make it again"
                )
            self._read[name] = content
        return self._read[name]


def referred(reference: str, files: ResultFiles, aliases: Mapping[str, str] | None = None) -> str:
    """Return the text of a reference; raises `FigureError` saying what is wrong with it."""
    words, _, form = " ".join(reference.split()).rpartition(" ")
    if not words:
        raise FigureError(f"{reference!r} is not FILE#PATH FORMAT, such as run.json#speed/ours .1f")
    for joint in (" over ", " minus "):
        left, _, right = words.partition(joint)
        if "#" in right:
            a, b = (_looked_up(part, files, aliases or {}) for part in (left, right))
            if not (_is_number(a) and _is_number(b)):
                raise FigureError(f"{words!r} takes two numbers, not {a!r} and {b!r}")
            if joint == " over " and b == 0:
                raise FigureError(f"{words!r} divides by 0")
            return formatted(a / b if joint == " over " else a - b, form)
    return formatted(_looked_up(words, files, aliases or {}), form)


def _looked_up(words: str, files: ResultFiles, aliases: Mapping[str, str]) -> Any:
    name, found, path = words.strip().partition("#")
    if not found:
        raise FigureError(f"{words!r} names no value: write FILE#PATH")
    name = aliases.get(name, name)
    return at(files[name], path, name)


def at(data: Any, path: str, name: str) -> Any:
    """Return the value at a path; raises `AbsentError` naming the step and what is there."""
    for step in _STEP.split(path):
        item = _get(data, step)
        if item is None:
            there = list(data) if isinstance(data, dict) else _items(data)
            raise AbsentError(f"{name} has no {step!r} of {path!r}; there is {_listed(there)}")
        data = item
    return data


def _get(data: Any, step: str) -> Any:
    if isinstance(data, dict):
        return data.get(step)
    if isinstance(data, list):
        if step.isdecimal():
            return data[int(step)] if int(step) < len(data) else None
        named = [item for item in data if isinstance(item, dict) and _plain(step) in _names(item)]
        if len(named) > 1:
            raise FigureError(f"{len(named)} items are named {step!r}; say which by its number")
        return named[0] if named else None
    return None


def _names(item: dict[str, Any]) -> list[str]:
    return [_plain(str(item[key])) for key in _NAMES if key in item]


def _plain(name: str) -> str:
    """Return a name with a minus that can be typed."""
    return name.replace("−", "-")


def _items(data: Any) -> list[str]:
    if not isinstance(data, list):
        return [repr(data)]
    names = [_names(item) if isinstance(item, dict) else [] for item in data]
    return [own[0] if own else str(number) for number, own in enumerate(names)]


def formatted(value: Any, form: str) -> str:
    """Return a value in words; None is a dash. Raises `FigureError` where the form does not fit."""
    if value is None:
        return ABSENT
    try:
        if form.endswith("±"):
            centre = _one(_first(value, _CENTRES), form[:-1])
            errors = [value[key] for key in _ERRORS if value.get(key) is not None]
            return " ± ".join([centre, *(_one(error, form[:-1]) for error in errors[:1])])
        if form.endswith("()"):
            low, high = _range(value)
            dash = " to " if low < 0 or high < 0 else "–"
            ends = dash.join(_one(end, form[:-2]) for end in (low, high))
            return f"{_one(_first(value, _CENTRES), form[:-2])} ({ends})"
        if form.endswith("/"):
            return " / ".join(formatted(item, form[:-1]) for item in value)
        return _one(value, form)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise FigureError(f"{value!r} cannot be written as {form!r}: {error}") from error


def _one(value: Any, form: str) -> str:
    if isinstance(value, bool):
        raise TypeError("it is neither a number nor text")
    if form == "min":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    if form.endswith("p"):
        return _with_minus(f"{100 * value:{form[:-1]}f}")
    return _with_minus(f"{value:{form}}") if _is_number(value) else f"{value:{form}}"


def _with_minus(number: str) -> str:
    """Return a number with a real minus sign, as the tables of studies have it."""
    return number.replace("-", "−")


def _range(value: Any) -> tuple[float, float]:
    low, high = (value["low"], value["high"]) if "low" in value else _first(value, _RANGES)
    return low, high


def _first(value: Any, keys: tuple[str, ...]) -> Any:
    """Return the first of the keys that has a value."""
    found = [value[key] for key in keys if value.get(key) is not None]
    if not found:
        raise KeyError(" or ".join(keys))
    return found[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _listed(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


__all__ = ["ABSENT", "PROVENANCE", "AbsentError", "ResultFiles", "at", "formatted", "referred"]
