"""Grids of a study and the arms they span; arms that train the same thing are one arm."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml
from pydantic import Field, model_validator

from pipeline.settings import Settings
from tcjepa.config import TEXT_KEYS
from tcjepa.evaluation import UNTRAINED

Scalar = str | int | float | bool | None
Place = tuple[tuple[str, Scalar], ...]
"""Where an arm lies on a grid: (axis, value) for each axis, after ("grid", name) if it has one."""

GRID: Final = "grid"
_NOISE: Final = "data.noise"
_TEXT: Final = "model.text"
#: Of an arm's folder [bytes of its name]; file systems take 255.
_LONGEST: Final = 200


class GridConfig(Settings):
    """Axes whose every combination is an arm."""

    name: str | None = Field(
        None, description="begins the names of the grid's arms; null: they begin with their values"
    )
    set: list[str] = Field([], description="key.sub=value overrides of the grid's arms")
    axes: dict[str, list[Scalar] | dict[str, list[str]]] = Field(
        min_length=1,
        description="training config key -> its values; or an axis of your own -> name of each "
        "level -> its key.sub=value overrides",
    )

    @model_validator(mode="after")
    def _has_values(self) -> GridConfig:
        for key, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{key}: has no values")
            if key == GRID:
                raise ValueError(f"axes.{GRID}: this name is taken for the grid's own; use another")
        return self


@dataclass(frozen=True)
class Arm:
    """One setting of the study: its places on the grids (none for a reference) and overrides."""

    name: str
    places: tuple[Place, ...]
    overrides: tuple[str, ...]

    @property
    def values(self) -> Place:
        """The arm's first place; empty for a reference."""
        return self.places[0] if self.places else ()


@dataclass(frozen=True)
class Curve:
    """The arms of a grid that differ in the x axis alone, in its order."""

    name: str
    points: tuple[tuple[Scalar, Arm], ...]


def expand(
    references: Mapping[str, Sequence[str]],
    grids: Sequence[GridConfig],
    common: Sequence[str],
    only: Mapping[str, Sequence[Scalar]] | None = None,
) -> list[Arm]:
    """Return the references, then the grids' arms in the order given, each once.

    With `only` (axis or `GRID` -> values), the arms that have a place among these values, with
    those places alone; their names are the ones that they have without it.

    Two combinations are one arm if `common` and their overrides say the same of everything that is
    read: at rate 0 all kinds of noise are alike, and I-JEPA reads no key of the text. Raises
    `ValueError` if two arms have one name, or names alike but for punctuation, and for names that
    are too long for a folder or taken for random weights.
    """
    found: dict[frozenset[Any], list[tuple[Place, tuple[str, ...]]]] = {}
    for grid in grids:
        for place, overrides in _combinations(grid):
            found.setdefault(_meaning([*common, *overrides]), []).append((place, overrides))
    arms = [Arm(name, (), tuple(keys)) for name, keys in references.items()]
    for alike in found.values():
        places = tuple(dict.fromkeys(place for place, _ in alike))
        arms.append(Arm(_name(places), places, alike[0][1]))
    _check_names(arms)
    return arms if not only else _selected(arms, only)


def known_values(grids: Sequence[GridConfig]) -> dict[str, list[Scalar]]:
    """Return every axis with its values on all grids, and `GRID` with the names of the grids."""
    known: dict[str, list[Scalar]] = {GRID: [grid.name for grid in grids if grid.name]}
    for grid in grids:
        for place, _ in _combinations(grid):
            for axis, value in place:
                values = known.setdefault(axis, [])
                if value not in values:
                    values.append(value)
    return known


def meant(value: Scalar, known: Sequence[Scalar]) -> Scalar:
    """Return the known value that `value` is or spells; `value` itself if there is none.

    The level that a grid calls "4" is the number 4, for the sake of curves; both names find it.
    """
    if value in known:
        return value
    return next((level for level in known if str(level) == value), value)


def curves(arms: Iterable[Arm], x: str) -> list[Curve]:
    """Return the curves over the axis `x`; an arm may lie on several of them."""
    lines: dict[Place, list[tuple[Scalar, Arm]]] = {}
    for arm in arms:
        for place in arm.places:
            rest = tuple((axis, value) for axis, value in place if axis != x)
            if len(rest) < len(place):
                lines.setdefault(rest, []).append((dict(place)[x], arm))
    return [
        Curve(", ".join(_parts(rest)), tuple(_in_order(points))) for rest, points in lines.items()
    ]


def slug(name: str) -> str:
    """Return a file name for an arm: letters, digits, dots and dashes."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).strip("-")


def dashed(name: str) -> str:
    """Return a file name for a figure: the words of its name, with a dash between them."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).lower().split())


def override(key: str, value: Any) -> str:
    """Return `key=value` with the value as JSON, which every reader of overrides understands."""
    return f"{key}={json.dumps(value)}"


def _combinations(grid: GridConfig) -> Iterable[tuple[Place, tuple[str, ...]]]:
    levels = []
    for axis, values in grid.axes.items():
        if isinstance(values, dict):
            levels.append([(axis, _label(label), tuple(keys)) for label, keys in values.items()])
        else:
            levels.append([(axis, value, (override(axis, value),)) for value in values])
    own: Place = ((GRID, grid.name),) if grid.name else ()
    for combination in itertools.product(*levels):
        place = (*own, *((axis, value) for axis, value, _ in combination))
        yield place, (*grid.set, *(key for _, _, keys in combination for key in keys))


def _selected(arms: Sequence[Arm], only: Mapping[str, Sequence[Scalar]]) -> list[Arm]:
    found = []
    for arm in arms:
        places = tuple(
            place
            for place in arm.places
            if all(value in only.get(axis, (value,)) for axis, value in place)
            and (GRID not in only or GRID in dict(place))
        )
        if places or not arm.places:
            found.append(replace(arm, places=places))
    return found


def _label(text: str) -> Scalar:
    """Return the name of a level, as a number where it reads as one, so that curves have an x."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def _in_order(points: list[tuple[Scalar, Arm]]) -> list[tuple[Scalar, Arm]]:
    """Return points by x where all are numbers; else in the order of the grid.

    An arm that several grids share was found with the first of them.
    """
    if all(isinstance(x, (int, float)) for x, _ in points):
        return sorted(points, key=lambda point: float(point[0] or 0))
    return points


def _name(places: Sequence[Place]) -> str:
    """Return what all places of an arm have in common, in words; if that is nothing, the first."""
    shared = [part for part in places[0] if all(part in place for place in places[1:])]
    return ", ".join(_parts(shared or places[0]))


def _parts(place: Iterable[tuple[str, Scalar]]) -> list[str]:
    """Return a place in words: levels of an axis of the study's own speak for themselves."""
    return [
        str(value)
        if axis == GRID or ("." not in axis and isinstance(value, str))
        else f"{axis.rsplit('.', 1)[-1]} {value}"
        for axis, value in place
    ]


def _meaning(overrides: Iterable[str]) -> frozenset[Any]:
    """Return what overrides say of the keys that are read, whatever their order."""
    said: dict[str, Any] = {}
    for item in overrides:
        key, _, text = item.partition("=")
        said = {old: value for old, value in said.items() if not old.startswith(f"{key}.")}
        said.pop(key, None)
        said[key] = _frozen(text)
    if said.get(f"{_NOISE}.rate", 1) == 0 or said.get(f"{_NOISE}.kind") == "none":
        said = _without(said, (_NOISE,)) | {_NOISE: None}
    objective = said.get("train.objective", "jepa")
    wordless = said.get(_TEXT, "") is None and not any(k.startswith(f"{_TEXT}.") for k in said)
    if objective == "supervised" or (objective == "jepa" and wordless):
        said = _without(said, TEXT_KEYS)
    return frozenset(said.items())


def _without(said: dict[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    return {
        key: value
        for key, value in said.items()
        if not any(key == section or key.startswith(f"{section}.") for section in sections)
    }


def _frozen(text: str) -> Any:
    """Return an override's value in a form that compares by content: 0.0 is 0, `[a, b]` a tuple."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, Scalar) else json.dumps(value, sort_keys=True, default=str)


def _check_names(arms: Sequence[Arm]) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        name, folder = arm.name, slug(arm.name)
        if name == UNTRAINED or name.startswith(f"{UNTRAINED}, "):
            raise ValueError(
                f"{name!r}: a report calls the encoders that were not trained so; use another name"
            )
        if len(folder.encode()) > _LONGEST:
            raise ValueError(
                f"the arm {name[:_LONGEST]!r}… would have a folder of {len(folder.encode())} bytes "
                f"of name, at most {_LONGEST} are allowed; give it, its grid or levels shorter ones"
            )
        if folder in seen:
            raise ValueError(
                f"two arms would share a folder: {seen[folder]!r} and {name!r}; give grids a name "
                "or other names to references and levels"
            )
        seen[folder] = name


__all__ = [
    "GRID",
    "Arm",
    "Curve",
    "GridConfig",
    "Place",
    "Scalar",
    "curves",
    "dashed",
    "expand",
    "known_values",
    "meant",
    "override",
    "slug",
]
