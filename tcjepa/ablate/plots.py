"""Figures of a study, from its result alone: curves or dots, differences, shares won back.

Made to be read in print, in grey and by the colour-blind: a marker and a dash of its own for each
line, names beside the lines, intervals as bars. A thick bar is the bootstrap's 95% interval, a thin
one Student's over seeds, cut off where it leaves the panel.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from tcjepa.ablate.drawing import (
    BLACK,
    GREY,
    Style,
    limits,
    names_beside,
    row,
    shown,
    style,
    tidy,
    upright,
)
from tcjepa.ablate.grids import dashed
from tcjepa.ablate.panels import Panel, is_numeric, panels
from tcjepa.ablate.schema import (
    MINUS,
    Estimate,
    Interval,
    Measured,
    RecoveryRecord,
    StudyResult,
)

_WIDTH: Final = 2.9
_HEIGHT: Final = 2.3
_ROW: Final = 0.2
_LINE: Final = 0.11
_NAME: Final = 36
_COLUMNS: Final = 3
_BARS: Final = (
    "Thick bar: bootstrap's 95% interval; thin bar: Student's over seeds. Bars that reach the edge "
    "of a panel go on beyond it."
)
_LEVELS: Final = Style(BLACK, "", (0, (5, 2)))
_RANDOM: Final = Style(GREY, "", ":")
Format = Literal["png", "svg"]
#: No dates, so that the same result gives the same file.
_METADATA: Final[dict[str, dict[str, Any]]] = {"png": {"Software": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Picture:
    """A figure: its name, what it shows, and how to draw it."""

    name: str
    caption: str
    draw: Callable[[], Any]

    @property
    def file(self) -> str:
        """A file name without its ending."""
        return dashed(self.name)

    def content(self, form: Format) -> bytes:
        """Return the figure as a file's content."""
        with _printed():
            figure = self.draw()
            out = io.BytesIO()
            figure.savefig(out, format=form, dpi=160, metadata=_METADATA[form])
        return out.getvalue()


def pictures(result: StudyResult) -> list[Picture]:
    """Return the figures that a study has something to show for."""
    measures = [m for m in result.measures if result.estimates.get(m.name)]
    layout = panels(result)
    dots = "large dots are means, small ones seeds, bars the bootstrap's 95% intervals"
    over = f"over {result.x}; {dots}"
    found: list[Picture] = []
    if not layout or not is_numeric([x for curve in result.curves for x, _ in curve.points]):
        found.append(Picture("arms", f"All arms. {_BARS}", partial(_arms, result, measures)))
    elif len(layout) == 1:
        draw = partial(_curves, result, [(layout[0], m, _titled(m)) for m in measures])
        found.append(Picture("curves", f"Every measure {over}.", draw))
    else:
        for m in measures:
            draw = partial(_curves, result, [(p, m, p.title) for p in layout], _titled(m))
            found.append(Picture(f"curves {m.name}", f"{m.name} {over}.", draw))
    if any(record.measures for record in result.contrasts):
        draw = partial(_contrasts, result)
        found.append(Picture("contrasts", f"Differences between arms. {_BARS}", draw))
    for record in result.recoveries:
        if any(record.shares.values()):
            about = f"Share of the loss from “{record.clean}” to “{record.noisy}” that is won back."
            draw = partial(_shares, record)
            found.append(Picture(f"won back {record.name}", f"{about} {_BARS}", draw))
    return found


def _curves(
    result: StudyResult, drawn: Sequence[tuple[Panel, Measured, str]], title: str | None = None
) -> Any:
    """Draw panels of curves; under one title they share their axes."""
    figure, grid = _grid(len(drawn), _HEIGHT, share=title is not None)
    for at, (panel, measure, name) in zip(grid, drawn, strict=True):
        _curve_panel(at, result, panel, measure)
        at.set_title(name, loc="left")
    if title is not None:
        # Shared axes have one range, which the names beside the lines need to know.
        spans = [at.get_ylim() for at in grid]
        for at in grid:
            at.set_ylim(min(low for low, _ in spans), max(high for _, high in spans))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    for at, (panel, measure, _) in zip(grid, drawn, strict=True):
        names_beside(at, _names(result, panel, measure))
    figure.supxlabel(result.x, fontsize=8)
    return figure


def _curve_panel(at: Any, result: StudyResult, panel: Panel, measure: Measured) -> None:
    own = result.estimates[measure.name]
    tidy(at)
    spans: list[Interval] = []
    numbers = [float(x) for line in panel.lines for x, _ in line.curve.points]  # type: ignore[arg-type]
    step = 0.012 * (max(numbers) - min(numbers))
    for line in panel.lines:
        look = style(line.style)
        shift = step * (line.style - (len(panel.lines) - 1) / 2)
        points = [(float(x), name) for x, name in line.curve.points if name in own]  # type: ignore[arg-type]
        for x, name in points:
            upright(at, x + shift, own[name], look)
            seeds = [t.values[measure.name] for t in result.trials
                     if t.arm == name and measure.name in t.values]  # fmt: skip
            beside = [x + shift + 0.7 * step] * len(seeds)
            at.plot(beside, seeds, "o", color=look.colour, alpha=0.6, ms=2, mew=0)
            spans += [*shown(own[name]), (min(seeds), max(seeds))]
        at.plot(
            [x + shift for x, _ in points], [own[name].value for _, name in points],
            marker=look.marker, color=look.colour, ls=look.dash, ms=4, lw=1.3, mec="white", mew=0.5,
        )  # fmt: skip
    for name, look in _level_lines(result):
        if name in own and own[name].value is not None:
            at.axhline(own[name].value, color=look.colour, ls=look.dash, lw=1)
            spans += shown(own[name])
            for low, high in shown(own[name]):
                at.axhspan(low, high, color=look.colour, alpha=0.1, lw=0)
    span = limits(spans)
    if span is not None:
        at.set_ylim(*span)


def _names(result: StudyResult, panel: Panel, measure: Measured) -> list[tuple[str, float, str]]:
    """Return (name, y of its right end, colour) of what a panel of curves shows."""
    own = result.estimates[measure.name]
    found = []
    for line in panel.lines:
        ends = [own[name].value for _, name in line.curve.points if name in own]
        if ends and ends[-1] is not None and line.label:
            found.append((line.label, ends[-1], style(line.style).colour))
    for name, look in _level_lines(result):
        value = own[name].value if name in own else None
        if value is not None:
            found.append((name, value, look.colour))
    return found


def _level_lines(result: StudyResult) -> list[tuple[str, Style]]:
    """Return the arms off the grid, drawn as lines across."""
    looks = {"reference": _LEVELS, "random weights": _RANDOM}
    return [(arm.name, looks[arm.role]) for arm in result.arms if arm.role in looks]


def _arms(result: StudyResult, measures: Sequence[Measured]) -> Any:
    looks = {"grid": style(0), "reference": style(1), "random weights": Style(GREY, "s", "-")}
    arms = [arm for arm in result.arms if any(arm.name in own for own in result.estimates.values())]
    rows = [
        (
            arm.name,
            looks[arm.role],
            {m.name: result.estimates[m.name].get(arm.name) for m in measures},
        )
        for arm in arms
    ]
    return _rows(rows, [(m.name, _titled(m)) for m in measures])


def _contrasts(result: StudyResult) -> Any:
    rows = [(record.name, style(0), dict(record.measures)) for record in result.contrasts]
    shown_of = [m for m in result.measures if any(m.name in r.measures for r in result.contrasts)]
    titles = [(m.name, f"{m.name} [points]" if m.unit else m.name) for m in shown_of]
    return _rows(rows, titles, at=(0.0,))


def _shares(record: RecoveryRecord) -> Any:
    rows = [(name, style(0), dict(own)) for name, own in record.shares.items()]
    names = [
        m
        for m in record.losses
        if any(own[m].value is not None for own in record.shares.values() if m in own)
    ]
    return _rows(rows, [(m, f"{m} [% of loss]") for m in names], at=(0.0, 1.0), scale=100)


def _rows(
    rows: Sequence[tuple[str, Style, dict[str, Any]]],
    columns: Sequence[tuple[str, str]],
    at: Sequence[float] = (),
    scale: float = 1,
) -> Any:
    """Draw a row per name and a panel per column, lines at the places that mean something."""
    names = [_wrapped(name) for name, _, _ in rows]
    deepest = max((name.count("\n") for name in names), default=0)
    height = _ROW + _LINE * deepest
    figure, grid = _grid(len(columns), 0.5 + height * len(rows), share=False)
    for number, (panel, (key, title)) in enumerate(zip(grid, columns, strict=True)):
        tidy(panel)
        panel.grid(False, axis="y")
        for place in at:
            panel.axvline(scale * place, color=GREY, lw=0.8, ls="-" if place == 0 else "--")
        spans = []
        for y, (_, look, own) in enumerate(rows):
            found: Estimate | None = own.get(key)
            if found is None:
                continue
            if found.value is None:
                panel.text(0.02, y, "undefined", fontsize=6.5, color=GREY, va="center",
                           transform=panel.get_yaxis_transform())  # fmt: skip
            row(panel, y, found, look, scale)
            spans += [(scale * low, scale * high) for low, high in shown(found)]
        span = limits(spans, *(scale * place for place in at))
        if span is not None:
            panel.set_xlim(*span)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_yticks(range(len(rows)), names if number % _COLUMNS == 0 else [])
        panel.tick_params(axis="y", length=0)
        panel.set_title(title, loc="left")
    return figure


def _wrapped(name: str) -> str:
    """Return a row's name over lines; the second arm of a difference begins one."""
    first, minus, second = name.partition(MINUS)
    lines = textwrap.wrap(first, _NAME)
    return "\n".join(lines + (textwrap.wrap(minus.lstrip() + second, _NAME) if minus else []))


def _titled(measure: Measured) -> str:
    return f"{measure.name} [%]" if measure.unit else measure.name


def _grid(count: int, height: float, share: bool) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, at most three abreast."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, max(count, 1))
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(_WIDTH * columns + 0.6, height * lines + 0.3), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=share, sharey=share)
    found = grid.flatten().tolist()
    for panel in found[count:]:
        panel.set_visible(False)
    return figure, found[:count]


@contextmanager
def _printed() -> Iterator[None]:
    """Draw in one size of type, with text as text: a name's dollars begin no formula."""
    import matplotlib

    settings = {
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8,
        "axes.linewidth": 0.7,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "study",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        yield


__all__ = ["Picture", "pictures"]
