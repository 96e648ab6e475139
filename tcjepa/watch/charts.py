"""Curves of runs as inline SVG. Colours are CSS classes, which follow the reader's colour scheme.

Lines differ in dashes as well as in colour. Coordinates are in units of the viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT = 360.0, 176.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 10.0, 22.0
#: Points of a line; more readings are averaged, and their range is drawn as a band.
_POINTS = 180
#: A single wild reading must not flatten all others: the axis ends at these quantiles of the means.
_LOW, _HIGH = 0.005, 0.97


@dataclass(frozen=True)
class Series:
    """One run's readings: steps and values (n,), and which of the colours it has."""

    name: str
    colour: int
    steps: Floats
    values: Floats


def curves(series: Sequence[Series], title: str, limit: float | None = None) -> Markup:
    """Return the chart of one reading; `limit` is an alarm's, drawn where it lies on the axis."""
    lines = [_binned(each) for each in series if len(each.values)]
    if not lines:
        return Markup("")
    values = np.concatenate([line.mean for line in lines])
    low, high = _range(values)
    last = max(float(line.step[-1]) for line in lines)
    parts = [_grid(low, high, last)]
    for line in lines:
        x = _LEFT + line.step / max(last, 1.0) * (_WIDTH - _LEFT - _RIGHT)
        if len(lines) == 1 and (line.high > line.low).any():
            parts.append(_band(line, x, low, high))
        parts.append(_line(line, x, low, high))
    if limit is not None and low < limit < high:
        y = _round(_y(np.array([limit]), low, high)[0])
        parts.append(
            Markup(
                '<line class="limit" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>'
                '<text class="limit-label" x="{b}" y="{t}" text-anchor="end">alarm {v}</text>'
            ).format(a=_LEFT, b=_WIDTH - _RIGHT, y=y, t=_round(float(y) - 3), v=f"{limit:g}")
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{t}">{b}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, t=title, b=Markup("").join(parts))


@dataclass(frozen=True)
class _Line:
    name: str
    colour: int
    step: Floats
    mean: Floats
    low: Floats
    high: Floats


def _binned(series: Series) -> _Line:
    """Return at most `_POINTS` means with their ranges; a constant number of readings in each."""
    size = -(-len(series.values) // _POINTS)
    starts = np.arange(0, len(series.values), size)
    counts = np.diff([*starts, len(series.values)])
    return _Line(
        series.name,
        series.colour,
        np.add.reduceat(series.steps, starts) / counts,
        np.add.reduceat(series.values, starts) / counts,
        np.minimum.reduceat(series.values, starts),
        np.maximum.reduceat(series.values, starts),
    )


def _range(values: Floats) -> tuple[float, float]:
    low, high = (float(v) for v in np.quantile(values, [_LOW, _HIGH]))
    if len(values) <= 20:
        low, high = float(values.min()), float(values.max())
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    room = 0.06 * (high - low) or max(abs(high), 1e-9) * 0.1
    return low - (room if low else 0.0), high + room


def _y(values: Floats, low: float, high: float) -> Floats:
    share = np.clip((values - low) / (high - low), -0.02, 1.02)
    return np.asarray(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM))


def _line(line: _Line, x: Floats, low: float, high: float) -> Markup:
    y = _y(line.mean, low, high)
    if len(x) == 1:
        body = '<circle class="dot s{c}" cx="{x}" cy="{y}" r="3"><title>{n}</title></circle>'
        return Markup(body).format(c=line.colour, x=_round(x[0]), y=_round(y[0]), n=line.name)
    points = " ".join(f"{_round(a)},{_round(b)}" for a, b in zip(x, y, strict=True))
    body = '<polyline class="s{c}" points="{p}"><title>{n}</title></polyline>'
    return Markup(body).format(c=line.colour, p=points, n=line.name)


def _band(line: _Line, x: Floats, low: float, high: float) -> Markup:
    top, bottom = _y(line.high, low, high), _y(line.low, low, high)
    there = [f"{_round(a)},{_round(b)}" for a, b in zip(x, top, strict=True)]
    back = [f"{_round(a)},{_round(b)}" for a, b in zip(x[::-1], bottom[::-1], strict=True)]
    return Markup('<polygon class="band s{c}" points="{p}"/>').format(
        c=line.colour, p=" ".join([*there, *back])
    )


def _grid(low: float, high: float, last: float) -> Markup:
    parts = []
    for value in _ticks(low, high, 4):
        y = float(_y(np.array([value]), low, high)[0])
        parts.append(
            Markup(
                '<line class="rule" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>'
                '<text x="{x}" y="{t}" text-anchor="end">{v}</text>'
            ).format(
                a=_LEFT, b=_WIDTH - _RIGHT, y=_round(y), x=_LEFT - 5, t=_round(y + 3.5),
                v=short(value),
            )
        )  # fmt: skip
    room = _WIDTH - _LEFT - _RIGHT
    for value in _ticks(0.0, max(last, 1.0), 4):
        x = _LEFT + value / max(last, 1.0) * room
        anchor = "start" if x < _LEFT + 8 else "end" if x > _WIDTH - _RIGHT - 14 else "middle"
        parts.append(
            Markup('<text x="{x}" y="{y}" text-anchor="{a}">{v}</text>').format(
                x=_round(x), y=_HEIGHT - 6, a=anchor, v=short(value)
            )
        )
    return Markup("").join(parts)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers in [low, high], at most about `most` of them."""
    span = (high - low) / most
    power = 10.0 ** math.floor(math.log10(span)) if span > 0 else 1.0
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= span)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Return a number for an axis or a caption: 4 digits at most, thousands as k, millions as M."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if sign == 'k' else size):.4g}{sign}"
    return f"{value:.4g}"


def _round(value: float) -> str:
    return f"{float(value):.1f}"


__all__ = ["Series", "curves", "short"]
