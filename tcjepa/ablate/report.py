"""The report of a study: table, plots and a page of Markdown that says what came out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tcjepa.ablate import provenance
from tcjepa.ablate.plots import plot_curves
from tcjepa.ablate.results import TRAINING, Outcome, write_outcomes
from tcjepa.ablate.statistics import Estimate, mean, slope
from tcjepa.ablate.study import StudyConfig, arms_of, trials_of
from tcjepa.evaluation import UNTRAINED

REPORT, RESULTS, PLOT = "report.md", "results.jsonl", "curves.png"


def write_report(study: StudyConfig, found: Sequence[Outcome]) -> str:
    """Write results, plot and report into the study's directory; return the report's text.

    Raises `ConfigError` if the results are of different code or data and `study.mixed` is false.
    """
    root = Path(study.run)
    made_by = provenance.check_same(study, [outcome.trial for outcome in found])
    write_outcomes(root / RESULTS, list(found))
    names = measure_names(found)
    plot_curves(study, found, names, root / PLOT)
    text = "\n".join(
        [
            f"# Study {root.name}",
            "",
            *_summary(study, found),
            "",
            *_table(study, found, names),
            "",
            "End of training, mean over seeds:",
            "",
            *_training_table(study, found),
            "",
            *_slopes(study, found, names),
            "",
            f"![curves]({PLOT})",
            "",
            "Made by:",
            "",
            *(f"- {line}" for line in made_by),
            "",
        ]
    )
    (root / REPORT).write_text(text)
    return text


def measure_names(found: Sequence[Outcome]) -> list[str]:
    """Return the names of all measures, in the order in which they first occur."""
    return list(dict.fromkeys(name for outcome in found for name in outcome.values))


def by_arm(found: Sequence[Outcome], name: str) -> dict[str, list[float]]:
    """Return each arm's values of a measure, one per finished seed, and those of random weights.

    The random encoder of a seed is the same in every arm, so it counts once.
    """
    values: dict[str, list[float]] = defaultdict(list)
    twins: dict[int, float] = {}
    for outcome in found:
        if name in outcome.values:
            values[outcome.trial.arm.name].append(outcome.values[name])
        if name in outcome.random:
            twins[outcome.trial.seed] = outcome.random[name]
    if twins:
        values[UNTRAINED] = list(twins.values())
    return dict(values)


def _summary(study: StudyConfig, found: Sequence[Outcome]) -> list[str]:
    total = len(trials_of(study))
    missing = total - len(found)
    lines = [
        f"{len(found)} of {total} runs finished; seeds {', '.join(map(str, study.seeds))}. "
        "Accuracies and mIoU in percent on held-out images. An interval is Student's 95% over "
        "seeds of the whole training run.",
    ]
    if missing:
        lines.append(f"{missing} runs are missing: `python -m tcjepa ablate` goes on with them.")
    return lines


def _table(study: StudyConfig, found: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    columns = {name: by_arm(found, name) for name in names}
    arms = [UNTRAINED, *(arm.name for arm in arms_of(study))]
    lines = [
        "| arm | seeds | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for arm in arms:
        cells = [_cell(columns[name].get(arm)) for name in names]
        seeds = max((len(columns[name].get(arm, [])) for name in names), default=0)
        lines.append(f"| {arm} | {seeds} | " + " | ".join(cells) + " |")
    return lines


def _training_table(study: StudyConfig, found: Sequence[Outcome]) -> list[str]:
    names = [n for n in TRAINING.values() if any(n in outcome.training for outcome in found)]
    lines = ["| arm | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for arm in arms_of(study):
        own = [outcome.training for outcome in found if outcome.trial.arm.name == arm.name]
        cells = []
        for name in names:
            values = [readings[name] for readings in own if name in readings]
            cells.append(f"{mean(values).value:.4f}" if values else "—")
        lines.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: list[float] | None) -> str:
    if not values:
        return "—"
    return format_estimate(mean(values))


def format_estimate(estimate: Estimate) -> str:
    """Return "mean ± half width" with digits that suit its size."""
    digits = 1 if abs(estimate.value) >= 1 else 4
    if estimate.half_width is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ± {estimate.half_width:.{digits}f}"


def _slopes(study: StudyConfig, found: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    """Return a line per measure: its change from x = 0 to x = 1, if x is numeric."""
    lines = []
    for name in names:
        points = [
            (float(x), outcome.values[name])
            for outcome in found
            if isinstance(x := dict(outcome.trial.arm.values).get(study.x), (int, float))
            and name in outcome.values
        ]
        fitted = slope([x for x, _ in points], [y for _, y in points])
        if fitted is None or fitted.interval is None:
            continue
        low, high = fitted.interval
        verdict = "not separated from 0" if low <= 0 <= high else "separated from 0"
        lines.append(
            f"- {name}: {fitted.value:+.4g} per unit of `{study.x}` "
            f"(95% interval {low:+.4g} to {high:+.4g}; {verdict}; {fitted.n} runs)"
        )
    if not lines:
        return []
    return ["Slopes, by least squares over all runs of the grid:", "", *lines]
