"""Charts as inline SVG. Colours are CSS classes, so that they follow the reader's colour scheme.

Coordinates are in units of the viewBox; a chart is as wide as its place allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pipeline.report.activity import Activity, merged
from pipeline.report.histograms import Bins
from pipeline.report.measures import Threshold, number

Floats = npt.NDArray[np.float64]

_WIDTH, _HEIGHT = 340.0, 128.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 6.0, 6.0, 20.0, 20.0
_LANE_STEPS = 240
_LANE_HEIGHT = 28.0


def histogram(
    bins: Bins, thresholds: Sequence[Threshold], title: str, line: Bins | None = None
) -> Markup:
    """Return a histogram: bars of `bins`, and a stepped line for a second series `line`.

    Both series must share their edges; each is drawn as shares of its own total. Bars on the wrong
    side of a threshold are hatched, the threshold a dashed line with its value.
    """
    parts = [_bars(bins, thresholds)]
    if line is not None:
        parts.append(_steps(line))
    on_axis = [t for t in thresholds if bins.edges[0] <= t.value <= bins.edges[-1]]
    parts += [_threshold(bins, limit) for limit in on_axis]
    parts.append(_axis(bins))
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{title}">{body}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, title=title, body=Markup("").join(parts))


def lanes(activity: Activity) -> dict[str, Markup]:
    """Return, per stage, an area chart of how many of its tasks ran at once, over time worked.

    All have the same axes: from the first task to the last, pauses in which nothing ran left out.
    """
    worked = merged([each for stage in activity.stages.values() for each in stage.intervals])
    total = sum(end - start for start, end in worked)
    if not total:
        return {}
    levels = {
        name: _levels(_on_worked_time(stage.intervals, worked), total)
        for name, stage in activity.stages.items()
    }
    highest = max(float(level.max()) for level in levels.values()) or 1.0
    return {name: _area(level / highest) for name, level in levels.items()}


def _x(bins: Bins, value: float) -> float:
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    if bins.logarithmic:
        share = math.log(max(value, low) / low) / math.log(high / low)
    else:
        share = (value - low) / (high - low)
    return _LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT)


def _heights(bins: Bins) -> Floats:
    """Return heights for shares; a bin with anything in it is at least visible."""
    room = _HEIGHT - _TOP - _BOTTOM
    top = max(int(bins.counts.max()), 1)
    return np.where(bins.counts > 0, np.maximum(bins.counts / top * room, 1.5), 0.0)


def _bars(bins: Bins, thresholds: Sequence[Threshold]) -> Markup:
    floor = _HEIGHT - _BOTTOM
    bars = []
    for left, right, height in zip(bins.edges[:-1], bins.edges[1:], _heights(bins), strict=True):
        if not height:
            continue
        start, end = _x(bins, left), _x(bins, right)
        middle = (left + right) / 2
        wrong = any((middle < t.value) == t.is_minimum and middle != t.value for t in thresholds)
        bars.append(
            Markup('<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}"/>').format(
                kind="wrong" if wrong else "bar",
                x=_round(start + 0.4),
                y=_round(floor - height),
                w=_round(max(end - start - 0.8, 0.6)),
                h=_round(float(height)),
            )
        )
    return Markup("").join(bars)


def _steps(bins: Bins) -> Markup:
    floor = _HEIGHT - _BOTTOM
    points = [f"M{_round(_x(bins, float(bins.edges[0])))} {floor}"]
    for right, height in zip(bins.edges[1:], _heights(bins), strict=True):
        points.append(f"V{_round(floor - float(height))}H{_round(_x(bins, float(right)))}")
    points.append(f"V{floor}")
    return Markup('<path class="second" d="{}"/>').format("".join(points))


def _threshold(bins: Bins, limit: Threshold) -> Markup:
    x = _x(bins, limit.value)
    sign = "≥" if limit.is_minimum else "≤"
    anchor = "start" if x < _WIDTH * 0.2 else "end" if x > _WIDTH * 0.8 else "middle"
    return Markup(
        '<line class="limit" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
        '<text class="limit-label" x="{x}" y="{label}" text-anchor="{anchor}">{sign} {value}</text>'
    ).format(
        x=_round(x),
        top=_TOP - 6,
        bottom=_HEIGHT - _BOTTOM,
        label=_TOP - 9,
        anchor=anchor,
        sign=sign,
        value=number(limit.value),
    )


def _axis(bins: Bins) -> Markup:
    floor = _HEIGHT - _BOTTOM
    parts = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y=floor
        )
    ]
    for value in _ticks(bins):
        x = _x(bins, value)
        anchor = "start" if x < 24 else "end" if x > _WIDTH - 24 else "middle"
        parts.append(
            Markup(
                '<line class="axis" x1="{x}" x2="{x}" y1="{y}" y2="{y2}"/>'
                '<text class="tick" x="{x}" y="{label}" text-anchor="{anchor}">{text}</text>'
            ).format(
                x=_round(x),
                y=floor,
                y2=floor + 4,
                label=floor + 16,
                anchor=anchor,
                text=_short(value),
            )
        )
    return Markup("").join(parts)


def _ticks(bins: Bins) -> list[float]:
    """Return 3 to 6 round numbers on the axis."""
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    if bins.logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
            if len(ticks) >= 3:
                return ticks[:: math.ceil(len(ticks) / 6)]
        return ticks
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _on_worked_time(
    intervals: list[tuple[float, float]], worked: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Return intervals as seconds of work since the first task: pauses take no time."""
    starts = np.array([start for start, _ in worked])
    lengths = np.array([end - start for start, end in worked])
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    moved = []
    for start, end in intervals:
        place = max(int(np.searchsorted(starts, start, side="right")) - 1, 0)
        shift = float(before[place] - starts[place])
        moved.append((start + shift, end + shift))
    return moved


def _levels(intervals: list[tuple[float, float]], total: float) -> Floats:
    """Return the mean number of tasks at once in each of `_LANE_STEPS` equal steps."""
    edges = np.linspace(0, total, _LANE_STEPS + 1)
    times = np.array(intervals).reshape(-1, 2)
    # Work done until each edge, summed over tasks; its difference is the work in each step.
    done = np.zeros(len(edges))
    for start, end in times:
        done += np.clip(edges, start, end) - start
    return np.asarray(np.diff(done) / (total / _LANE_STEPS))


def _area(levels: Floats) -> Markup:
    points = [f"M0 {_LANE_HEIGHT:.0f}"]
    for step, level in enumerate(levels):
        y = _round(_LANE_HEIGHT * (1 - float(level)))
        points.append(f"V{y}H{step + 1}")
    return Markup(
        '<svg class="lane" viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="bar" d="{d}V{h}Z"/></svg>'
    ).format(w=_LANE_STEPS, h=int(_LANE_HEIGHT), d="".join(points))


def _short(value: float) -> str:
    """Return a tick label: 1,500,000 as 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if letter == "k" else size
            return f"{value / divisor:.3g}{letter}"
    return str(escape(number(round(value, 9))))


def _round(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


__all__ = ["histogram", "lanes"]
