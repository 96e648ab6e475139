"""Curves of a study: one panel per measure, the x axis as configured, references as level lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tcjepa.ablate.results import Outcome
from tcjepa.ablate.statistics import mean
from tcjepa.ablate.study import StudyConfig
from tcjepa.evaluation import UNTRAINED

# Okabe and Ito's palette, told apart by readers with colour-vision deficiencies.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#777777"
_COLUMNS = 3


def plot_curves(
    study: StudyConfig, found: Sequence[Outcome], names: Sequence[str], path: Path
) -> None:
    """Draw every measure over `study.x`: each run a dot, each mean on a line.

    Intervals stay in the table: over two seeds Student's would hide the panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(_COLUMNS, max(len(names), 1))
    rows = -(-max(len(names), 1) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(4.4 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    panels = grid.flatten().tolist()
    for panel, name in zip(panels, names, strict=False):
        _draw(panel, study, found, name)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    if names:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(panel: Any, study: StudyConfig, found: Sequence[Outcome], name: str) -> None:
    lines: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    levels: dict[str, list[float]] = defaultdict(list)
    random: dict[int, float] = {}
    for outcome in found:
        place = dict(outcome.trial.arm.values)
        if name in outcome.random:
            random[outcome.trial.seed] = outcome.random[name]
        if name not in outcome.values:
            continue
        if not place:
            levels[outcome.trial.arm.name].append(outcome.values[name])
            continue
        x = place.pop(study.x)
        label = ", ".join(f"{k.rsplit('.', 1)[-1]} {v}" for k, v in place.items()) or "TC-JEPA"
        lines[label][x].append(outcome.values[name])
    colours = dict(zip([*lines, *levels], _COLOURS * 4, strict=False))
    for label, points in lines.items():
        xs = list(points)
        for x in xs:
            panel.plot([x] * len(points[x]), points[x], "o", color=colours[label], alpha=0.4, ms=4)
        means = [mean(points[x]).value for x in xs]
        panel.plot(xs, means, "-", color=colours[label], label=label, lw=1.8)
    for label, values in levels.items():
        panel.axhline(mean(values).value, color=colours[label], ls="--", label=label, lw=1.5)
    if random:
        level = mean(list(random.values())).value
        panel.axhline(level, color=_GREY, ls=":", label=UNTRAINED, lw=1.5)
    panel.set_title(name, fontsize=10)
    panel.set_xlabel(study.x, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
