"""How a study's curves are laid out: few in one panel per measure, many as small multiples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tcjepa.ablate.schema import CurveRecord, StudyResult

#: More lines than this in one panel cannot be told apart.
MOST_LINES: Final = 5
_Rest = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One curve of a panel; `style` is its number among the figure's kinds of lines."""

    label: str
    style: int
    curve: CurveRecord


@dataclass(frozen=True)
class Panel:
    """A panel's title and its lines."""

    title: str
    lines: tuple[Line, ...]


def panels(result: StudyResult) -> list[Panel]:
    """Return the panels that one measure's curves need: one, or one per level of an axis.

    The axis with the most levels is spread over panels and the others over the lines of each, so
    that nine kinds of noise with three counts of captions are nine panels of three lines.
    """
    curves = [curve for curve in result.curves if len(curve.points) > 1]
    if len(curves) <= MOST_LINES:
        labels = [curve.name or result.name for curve in curves]
        lines = [Line(label, n, c) for n, (label, c) in enumerate(zip(labels, curves, strict=True))]
        return [Panel("", tuple(lines))] if lines else []
    places = [_rest(result, curve) for curve in curves]
    axes = list(dict.fromkeys(axis for place in places for axis in place))
    levels = {a: list(dict.fromkeys(str(p.get(a, "")) for p in places)) for a in axes}
    spread = max(axes, key=lambda axis: len(levels[axis]), default="")
    grouped: dict[str, list[tuple[str, CurveRecord]]] = {}
    for place, curve in zip(places, curves, strict=True):
        title = _words(spread, place[spread]) if spread in place else curve.name
        others = [_words(a, v) for a, v in place.items() if a != spread and len(levels[a]) > 1]
        grouped.setdefault(title, []).append((", ".join(others), curve))
    styles: dict[str, int] = {}
    return [
        Panel(
            title,
            tuple(Line(n, styles.setdefault(n, len(styles)), curve) for n, curve in lines),
        )
        for title, lines in grouped.items()
    ]


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all places on an axis are numbers, so that lines may join them."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _rest(result: StudyResult, curve: CurveRecord) -> _Rest:
    """Return the axes and levels that a curve's arms have in common, the x axis left out."""
    places = {arm.name: arm.places for arm in result.arms}
    common: list[_Rest] = []
    for number, (_, name) in enumerate(curve.points):
        own = [{a: v for a, v in place if a != result.x} for place in places.get(name, ())]
        common = own if number == 0 else [rest for rest in common if rest in own]
    return common[0] if common else {}


def _words(axis: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{axis.rsplit('.', 1)[-1].replace('_', ' ')} {value}"


__all__ = ["MOST_LINES", "Line", "Panel", "is_numeric", "panels"]
