"""Marks that every figure of a study is made of: styles, interval bars, names beside lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tcjepa.ablate.schema import Estimate, Interval

# Okabe and Ito's palette, told apart by readers with colour-vision deficiencies; yellow is left
# out, which white paper swallows. Markers and dashes tell lines apart without any colour.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: Final = ("-", (0, (6, 2)), (0, (2, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (1, 1)), (0, (9, 2)))
BLACK: Final = "#000000"
GREY: Final = "#666666"
_LABEL: Final = 20
_GAP: Final = 0.065
"""Height of a label's line, as a share of the panel's."""


@dataclass(frozen=True)
class Style:
    """How a line looks."""

    colour: str
    marker: str
    dash: Any


def style(number: int) -> Style:
    """Return the look of a figure's n-th line, from 0."""
    return Style(
        _COLOURS[number % len(_COLOURS)],
        _MARKERS[number % len(_MARKERS)],
        _DASHES[number % len(_DASHES)],
    )


def tidy(panel: Any) -> None:
    """Leave the left and lower axis and a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(True, color="#E4E4E4", lw=0.6)
    panel.set_axisbelow(True)


def limits(intervals: Sequence[Interval], *points: float) -> Interval | None:
    """Return what an axis must span to show them all, with a margin; None for nothing."""
    ends = [end for interval in intervals for end in interval] + list(points)
    if not ends:
        return None
    low, high = min(ends), max(ends)
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def shown(found: Estimate) -> list[Interval]:
    """Return what an axis must show of an estimate: its bootstrap interval, or the value."""
    if found.value is None:
        return []
    return [found.interval or (found.value, found.value)]


def row(panel: Any, y: float, found: Estimate, look: Style, scale: float = 1) -> None:
    """Draw an estimate as a dot in a row, with a thick bar and a thin one behind it."""
    if found.value is None:
        return
    if found.student is not None:
        ends = [scale * end for end in found.student]
        panel.plot(ends, [y, y], "-", color=look.colour, lw=0.8, solid_capstyle="butt")
    if found.interval is not None:
        ends = [scale * end for end in found.interval]
        panel.plot(ends, [y, y], "-", color=look.colour, lw=2.6, solid_capstyle="butt")
    panel.plot(scale * found.value, y, look.marker, color=look.colour, ms=4.5, mec="white", mew=0.5)


def upright(panel: Any, x: float, found: Estimate, look: Style) -> None:
    """Draw an estimate's bootstrap interval as a bar with caps, above and below its place."""
    if found.value is None or found.interval is None:
        return
    # A percentile interval need not hold its estimate, and matplotlib takes no negative length.
    below, above = (
        max(d, 0.0) for d in (found.value - found.interval[0], found.interval[1] - found.value)
    )
    panel.errorbar(
        [x], [found.value], yerr=[[below], [above]], color=look.colour, elinewidth=1.1, capsize=2
    )


def names_beside(panel: Any, names: Sequence[tuple[str, float, str]]) -> None:
    """Write (name, y, colour) to the right of a panel, moved apart where they would overlap."""
    low, high = panel.get_ylim()
    wrapped = [(textwrap.fill(name, _LABEL), y, colour) for name, y, colour in names]
    wrapped.sort(key=lambda item: item[1])
    heights = [_GAP * (text.count("\n") + 1) for text, _, _ in wrapped]
    wanted = [(y - low) / (high - low) for _, y, _ in wrapped]
    for (text, y, colour), at in zip(wrapped, moved_apart(wanted, heights), strict=True):
        panel.annotate(
            text,
            xy=(1.0, (y - low) / (high - low)),
            xytext=(1.045, at),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=7,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
        )


def moved_apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return places near the wanted ones, in order, that heights around them do not overlap.

    `wanted` is sorted. Labels that touch form a block, which stands where its labels on average
    want to; blocks that touch are joined (pool adjacent violators).
    """
    blocks: list[tuple[float, list[int]]] = []  # lower end, members
    for number in range(len(wanted)):
        blocks.append((wanted[number] - heights[number] / 2, [number]))
        while len(blocks) > 1 and _top(blocks[-2], heights) > blocks[-1][0] + 1e-12:
            _, later = blocks.pop()
            _, earlier = blocks.pop()
            members = earlier + later
            offsets, height = [], 0.0
            for member in members:
                offsets.append(wanted[member] - height - heights[member] / 2)
                height += heights[member]
            blocks.append((sum(offsets) / len(offsets), members))
    places = [0.0] * len(wanted)
    for low, members in blocks:
        at = low
        for member in members:
            places[member] = at + heights[member] / 2
            at += heights[member]
    return places


def _top(block: tuple[float, list[int]], heights: Sequence[float]) -> float:
    return block[0] + sum(heights[member] for member in block[1])


__all__ = [
    "BLACK",
    "GREY",
    "Style",
    "limits",
    "moved_apart",
    "names_beside",
    "row",
    "shown",
    "style",
    "tidy",
    "upright",
]
