"""A calibration as JSON, as Markdown tables and as a figure for print."""

from __future__ import annotations

import io
from typing import Any, Final

from pipeline.schema import SCORES
from pipeline.scorers.calibration.measure import RIGHT, SWAPPED, Calibration
from pipeline.storage import Directory

FOLDER: Final = "calibration"
NAMES: Final = {
    "alt": "alt texts",
    "alt_two": "alt texts that name two or more things",
    "dropped": "alt texts that the filters had dropped, against right ones that were kept",
    "generated": "sentences of the annotations captioner",
    "made": "captions made for measuring",
    "sets": "an image's caption set",
}
#: Groups that have rows in the figure, and how a row names them.
_ROWS: Final = {"alt": "alt", "dropped": "dropped", "generated": "generated", "made": "made"}
# Okabe and Ito's palette, told apart by readers with colour-vision deficiencies; dashes and marks
# tell the lines apart in grey.
_THIN: Final = 0.005  # share of captions; a bin of fewer is noise and is not drawn
_STYLES: Final = {
    "wording": ("#E69F00", ":", "v"),
    "language": ("#999999", (0, (1, 3)), "x"),
    "alignment": ("#0072B2", "--", "s"),
    "agreement": ("#009E73", "-.", "^"),
    "quality": ("#D55E00", "-", "o"),
}


def write(found: Calibration, run: Directory) -> list[str]:
    """Write calibration.json, .md and .png into the run's `calibration/`; return their paths."""
    folder = run / FOLDER
    folder.write_json("calibration.json", found.to_json())
    folder.write_text("calibration.md", markdown(found))
    folder.write_bytes("calibration.png", picture(found))
    return [folder.path(f"calibration.{kind}") for kind in ("json", "md", "png")]


def markdown(found: Calibration) -> str:
    """Return the AUC of every score for every fault, and reliability, as Markdown tables."""
    lines = ["# Calibration of the caption scores", ""]
    lines += ["AUC: how often a right caption scores above one with the fault.", ""]
    for name, group in found.groups().items():
        right = group.counts.get(RIGHT, 0)
        lines += [f"## {NAMES[name]}: {right} right", ""]
        rows = [
            [fault, str(group.counts[fault]), *(_number(values[score]) for score in SCORES)]
            for fault, values in group.aucs().items()
        ]
        lines += [*_table(["fault", "captions", *SCORES], rows), ""]
    lines += ["## Reliability of alt texts", ""]
    lines += ["ECE: mean distance between the score and the share of right captions.", ""]
    rows = []
    for score in SCORES:
        curves = found.reliability(score)
        errors = [curves[name][1] if name in curves else None for name in ("even", "found")]
        rows.append([score, *map(_number, errors)])
    header = ["score", "right and swapped at even odds", "right and all wrong, as found"]
    lines += [*_table(header, rows), ""]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def picture(found: Calibration) -> bytes:
    """Return a PNG: ROC for swapped alt texts, AUC by fault, and reliability."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13.5, 5.0), layout="constrained")
    _draw_roc(panels[0], found)
    _draw_faults(panels[1], found)
    _draw_reliability(panels[2], found)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SCORES), frameon=False)
    sink = io.BytesIO()
    # No date in the file: equal calibrations are equal pictures.
    figure.savefig(sink, dpi=130, format="png", metadata={"Software": None})
    pyplot.close(figure)
    return sink.getvalue()


def _draw_roc(panel: Any, found: Calibration) -> None:
    curves = found.to_json()["roc"].get("alt", {})
    for score, curve in curves.items():
        if curve is not None:
            colour, dash, mark = _STYLES[score]
            panel.plot(
                curve["wrong_kept"], curve["right_kept"], color=colour, linestyle=dash, marker=mark,
                markevery=0.25, markersize=5, markerfacecolor="white",
            )  # fmt: skip
    _diagonal(panel)
    panel.set(
        title="Swapped alt texts",
        xlabel="share of swapped ones kept",
        ylabel="share of right ones kept",
    )


def _draw_faults(panel: Any, found: Calibration) -> None:
    """Draw AUC of every score, a row for each fault of alt texts and of made captions."""
    rows = [
        (f"{fault} ({word})", values)
        for name, word in _ROWS.items()
        if name in found.groups()
        for fault, values in found.groups()[name].aucs().items()
    ][::-1]
    for score in SCORES:
        colour, _, mark = _STYLES[score]
        points = [(v[score], n) for n, (_, v) in enumerate(rows) if v[score] is not None]
        hollow = "none" if score != "quality" else colour
        panel.plot(
            [x for x, _ in points], [y for _, y in points], mark, color=colour, label=score,
            markerfacecolor=hollow, markersize=7, linestyle="none",
        )  # fmt: skip
    panel.axvline(0.5, color="#777777", linewidth=0.8)
    panel.set_yticks(range(len(rows)), [label for label, _ in rows])
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set(title="Right against wrong", xlabel="AUC", xlim=(min(0.4, *_lowest(rows)), 1.02))


def _lowest(rows: list[tuple[str, dict[str, float | None]]]) -> list[float]:
    return [v - 0.02 for _, values in rows for v in values.values() if v is not None] or [0.4]


def _draw_reliability(panel: Any, found: Calibration) -> None:
    for score in ("alignment", "agreement", "quality"):
        curve = found.reliability(score).get("even")
        if curve is not None:
            colour, dash, mark = _STYLES[score]
            bins, error = [one for one in curve[0] if one.weight > _THIN], curve[1]
            panel.plot(
                [one.score for one in bins], [one.right for one in bins], color=colour,
                linestyle=dash, marker=mark, markersize=5, label=f"{score}: ECE {error:.3f}",
            )  # fmt: skip
    _diagonal(panel)
    panel.legend(loc="upper left", frameon=False)
    panel.set(
        title="Reliability at even odds",
        xlabel="score",
        ylabel="share right, of right and swapped",
    )


def _diagonal(panel: Any) -> None:
    panel.plot([0, 1], [0, 1], color="#777777", linewidth=0.8)
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


__all__ = ["FOLDER", "SWAPPED", "markdown", "picture", "write"]
