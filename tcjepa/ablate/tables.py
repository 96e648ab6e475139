"""The tables of a study's report, from its result alone; as Markdown or as a page, the same text.

A cell is `value [low, high] ±half`: the bootstrap's interval, and half of Student's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tcjepa.ablate.intervals import has_zero, mean
from tcjepa.ablate.schema import Estimate, Interval, RecoveryRecord, StudyResult

ABSENT = "—"


@dataclass(frozen=True)
class Table:
    """A heading, what to know about it, and cells of text; the first column names the row."""

    title: str
    about: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(result: StudyResult) -> list[Table]:
    """Return the tables of results; a table without rows is left out."""
    found = [
        arms_table(result),
        contrasts_table(result),
        *(recovery_table(result, record) for record in result.recoveries),
        slopes_table(result),
        training_table(result),
    ]
    return [table for table in found if table.rows]


def arms_table(result: StudyResult) -> Table:
    """Return the means of all arms over seeds: random weights and references first."""
    order = sorted(
        (arm for arm in result.arms if any(arm.name in own for own in result.estimates.values())),
        key=lambda arm: ("random weights", "reference", "grid").index(arm.role),
    )
    rows = []
    for arm in order:
        own = [result.estimates.get(m.name, {}).get(arm.name) for m in result.measures]
        seeds = max((e.seeds for e in own if e is not None), default=0)
        cells = (
            cell(e, m.unit == "%") if e is not None else ABSENT
            for e, m in zip(own, result.measures, strict=True)
        )
        rows.append((arm.name, str(seeds), *cells))
    units = [f"{m.name} [%]" if m.unit else m.name for m in result.measures]
    return Table(
        "Means over seeds",
        "Accuracy and IoU in percent of held-out images or pixels.",
        ("arm", "seeds", *units),
        tuple(rows),
    )


def contrasts_table(result: StudyResult) -> Table:
    """Return the differences that the study asked for, a row per measure."""
    units = {m.name: m.unit for m in result.measures}
    rows = [
        (
            record.name,
            measure,
            signed(found.value, decimals := _decimals(found, units[measure] == "%")),
            ends(found.interval, decimals),
            ends(found.student, decimals),
            str(found.seeds),
            verdict(found),
        )
        for record in result.contrasts
        for measure, found in record.measures.items()
    ]
    head = ("difference", "measure", "value", "bootstrap", "Student", "seeds", "0 is outside")
    about = "First minus second arm, in points where the measure is in percent; paired by seed and "
    return Table("Contrasts", about + "test image.", head, tuple(rows))


def recovery_table(result: StudyResult, record: RecoveryRecord) -> Table:
    """Return what noise took and the share of it that each remedy won back."""
    measures = list(record.losses)
    percent = {m.name: m.unit == "%" for m in result.measures}
    lost = [
        f"{cell(record.losses[m], percent[m])} {'points ' if percent[m] else ''}lost"
        for m in measures
    ]
    rows = [
        (name, *(share_cell(own[m]) if m in own else ABSENT for m in measures))
        for name, own in record.shares.items()
    ]
    about = (
        f"Share of the loss from “{record.clean}” to “{record.noisy}” that each arm has back: "
        "(arm − noisy) / (clean − noisy), 100% is all of it, below 0 is worse than doing nothing. "
        "Brackets: bootstrap; t: Fieller's interval over seeds. Undefined where the bootstrap "
        "interval of the loss reaches 0 or lies below: then there is no loss to win back."
    )
    return Table(
        f"Won back: {record.name}",
        about,
        ("arm", *measures),
        ((f"{record.clean} − {record.noisy}", *lost), *rows) if rows else (),
    )


def slopes_table(result: StudyResult) -> Table:
    """Return the change of every curve per unit of x, and of how many seeds and arms it is."""
    measures = [m for m in result.measures if any(m.name in s.measures for s in result.slopes)]
    rows = []
    for record in result.slopes:
        own = [record.measures.get(m.name) for m in measures]
        seeds = span([found.seeds for found in own if found is not None])
        cells = (
            ABSENT
            if found is None
            else cell(found, m.unit == "%", sign=True) + _of_arms(record.points.get(m.name))
            for found, m in zip(own, measures, strict=True)
        )
        rows.append((record.curve or result.name, seeds, *cells))
    units = [f"{m.name} [points]" if m.unit else m.name for m in measures]
    about = (
        f"Least squares, per unit of `{result.x}`, on the seeds with which all fitted arms of a "
        "curve were run; an arm without any is left out, and the cell says so."
    )
    return Table("Slopes", about, ("curve", "seeds", *units), tuple(rows))


def _of_arms(counts: tuple[int, int] | None) -> str:
    return "" if counts is None else f" ({counts[0]} of {counts[1]} arms)"


def training_table(result: StudyResult) -> Table:
    """Return the last readings of training, means over seeds."""
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.training))
    rows = []
    for arm in result.arms:
        own = [trial.training for trial in result.trials if trial.arm == arm.name]
        readings = [[t[name] for t in own if name in t] for name in names]
        if any(readings):
            rows.append((arm.name, *(f"{mean(r):.4g}" if r else ABSENT for r in readings)))
    return Table("End of training", "Mean over seeds.", ("arm", *names), tuple(rows))


def runs_table(result: StudyResult) -> Table:
    """Return every finished run."""
    names = [m.name for m in result.measures]
    percent = {m.name: m.unit == "%" for m in result.measures}
    rows = []
    for trial in result.trials:
        own = trial.values
        values = (
            number(own[n], _digits(own[n], percent[n])) if n in own else ABSENT for n in names
        )
        minutes = ABSENT if trial.minutes is None else f"{trial.minutes:.1f}"
        rows.append((trial.arm, str(trial.seed), minutes, *values))
    return Table("All runs", "", ("arm", "seed", "minutes", *names), tuple(rows))


def missing_table(result: StudyResult) -> Table:
    """Return the runs without a result."""
    rows = [
        (
            run.arm,
            str(run.seed),
            "begun" if run.begun else "not begun",
            run.last_words or ABSENT,
        )
        for run in result.missing
    ]
    about = "Begun: it failed, was stopped, or still runs. Nothing below speaks for these runs."
    return Table("Runs without a result", about, ("arm", "seed", "state", "last words"), (*rows,))


def overrides_table(result: StudyResult) -> Table:
    """Return what makes each arm."""
    rows = [
        (arm.name, " ".join(arm.overrides)) for arm in result.arms if arm.role != "random weights"
    ]
    return Table("Arms", "", ("arm", "overrides"), tuple(rows))


def cell(found: Estimate, percent: bool, sign: bool = False) -> str:
    """Return `value [low, high] ±half`, without what is not known, to as many decimals each."""
    if found.value is None:
        return "undefined"
    decimals = _decimals(found, percent)
    parts = [signed(found.value, decimals) if sign else number(found.value, decimals)]
    if found.interval is not None:
        parts.append(ends(found.interval, decimals))
    if found.student is not None:
        parts.append(f"±{number((found.student[1] - found.student[0]) / 2, decimals)}")
    return " ".join(parts)


def share_cell(found: Estimate) -> str:
    """Return a share in percent with both intervals."""
    if found.value is None:
        return "undefined"
    text = f"{100 * found.value:.0f}%"
    if found.interval is not None:
        text += f" [{100 * found.interval[0]:.0f}, {100 * found.interval[1]:.0f}]"
    if found.student is not None:
        text += f" t: [{100 * found.student[0]:.0f}, {100 * found.student[1]:.0f}]"
    elif found.seeds > 1:
        text += " t: unbounded"
    return text


def ends(interval: Interval | None, decimals: int) -> str:
    """Return `[low, high]`."""
    if interval is None:
        return ABSENT
    return f"[{number(interval[0], decimals)}, {number(interval[1], decimals)}]"


def span(counts: Sequence[int]) -> str:
    """Return `3`, or `2–3` for counts from 2 to 3; — for none."""
    if not counts:
        return ABSENT
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def number(value: float, decimals: int) -> str:
    """Return a number with a real minus sign."""
    return f"{value:.{decimals}f}".replace("-", "−")


def signed(value: float | None, decimals: int) -> str:
    """Return a number with its sign."""
    if value is None:
        return "undefined"
    return ("+" if value >= 0 else "") + number(value, decimals)


def _decimals(found: Estimate, percent: bool) -> int:
    """Return the decimals that show an estimate: one of a percentage, three digits of another."""
    largest = max(abs(v) for v in (found.value or 0, *(found.interval or ())))
    return _digits(largest, percent)


def _digits(value: float, percent: bool) -> int:
    if percent:
        return 1
    return 2 if not value else min(max(2 - math.floor(math.log10(abs(value))), 0), 6)


def verdict(found: Estimate) -> str:
    """Return which of the two intervals leave 0 out."""
    said = [
        name
        for name, interval in (("bootstrap", found.interval), ("Student", found.student))
        if not has_zero(interval)
    ]
    return {0: "neither", 1: f"{said[0]} only" if said else "", 2: "both"}[len(said)]


def as_markdown(table: Table) -> str:
    """Return heading, text and table as GitHub's Markdown."""
    lines = [f"## {plain(table.title)}", ""]
    if table.about:
        lines += [plain(table.about), ""]
    return "\n".join([*lines, *_lines([table.head, *table.rows])])


def _lines(rows: Sequence[Iterable[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(_escaped(text) for text in row) + " |" for row in rows]
    return [head, "|---" * len(list(rows[0])) + "|", *body]


def plain(text: str) -> str:
    """Return text in which Markdown finds no HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str) -> str:
    """Return text that a Markdown table shows as it is, HTML and cells' ends included."""
    return " ".join(plain(text).replace("|", "\\|").split())


__all__ = [
    "Table",
    "arms_table",
    "as_markdown",
    "contrasts_table",
    "missing_table",
    "overrides_table",
    "plain",
    "recovery_table",
    "runs_table",
    "slopes_table",
    "span",
    "tables",
    "training_table",
]
