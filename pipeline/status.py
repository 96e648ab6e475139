"""How far a run is, and where its rows went, with examples; works while it runs and after."""

from __future__ import annotations

from typing import Any

from pipeline.funnel import format_funnel
from pipeline.report.activity import seconds_left
from pipeline.report.examples import Example, read_examples
from pipeline.report.fates import Fates
from pipeline.report.meanings import meaning
from pipeline.report.measures import number
from pipeline.report.picks import ALT_TEXT, DROPPED, FAILED, WRITTEN, Picks
from pipeline.report.sections import duration, sums
from pipeline.report.state import RunState, read_state
from pipeline.report.visible import visible, without_secrets
from pipeline.stages.task import SHARDS
from pipeline.storage import Directory

_EXAMPLES = 10
_STAGES = ("download", "filter", "embed", "recaption", "score")
#: Steps over all parts, and the rows whose waiting says that the step is still to come.
_STEPS = {
    "select": {"download", "select"},
    "fit": {"download", "select"},
    "choose": {"download", "select", "choose"},
}
_TITLES = {
    FAILED: "failed",
    DROPPED: "image dropped",
    ALT_TEXT: "alt text dropped",
    WRITTEN: "new caption dropped",
}
# What the examples of a kind show of a text; URLs and captions share a terminal's line.
_TEXT, _URL, _ERROR = 70, 60, 300


def describe_run(url: str, examples: bool = True) -> str:
    """Return a run's progress, failures and funnel and, per reason, up to ten `examples`.

    All that comes from the data is made harmless to a terminal. Raises `ConfigError` if `url` is no
    run directory.
    """
    state = read_state(Directory(url))
    fates = Fates(Picks(_EXAMPLES if examples else 0, kept=0))
    tables = state.tables()
    for part in tables:
        fates.add(part)
    for listed in state.parts:
        if listed.name in state.failed_parts:
            fates.add_failed_part(listed)
    lines = [
        _headline(state),
        *_progress(state, fates),
        *_errors(state),
        "",
        *_funnel(state, fates),
    ]
    if examples:
        found = read_examples(tables, fates, state.config)
        for kind, title in _TITLES.items():
            for (own, reason), group in sorted(found.items()):
                if own == kind:
                    lines += ["", *_group(title, kind, reason, group)]
    return "\n".join(lines)


def _headline(state: RunState) -> str:
    rows = sum(part.rows for part in state.parts)
    what = f"{without_secrets(state.run.url)}: {rows:,} rows in {len(state.parts)} parts, "
    if state.running:
        return what + "running" + (f", dashboard {state.dashboard}" if state.dashboard else "")
    what += "finished" if state.manifest is not None else "not finished: no manifest"
    return what + ("; verdicts by thresholds that were only tried" if state.is_tried else "")


def _progress(state: RunState, fates: Fates) -> list[str]:
    """Return a line per stage, and how long is left."""
    lines = []
    total = len(state.parts)
    waiting: dict[str, int] = {}
    for stage in _STAGES:
        activity = state.activity.stages.get(stage)
        if stage == "embed" and activity is None and not fates.done[stage]:
            continue
        waiting[stage] = total - fates.done[stage]
        line = f"  {stage:<10}{fates.done[stage]:>7,} of {total:,} parts"
        if activity is not None and activity.rate:
            line += f", {number(activity.rate)} {activity.unit}/s"
        if activity is not None and activity.errors:
            line += f", {activity.errors} failed tries"
        lines.append(line)
    written = len((state.run / SHARDS).names("*.tar"))
    lines.append(f"  {'shards':<10}{written:>7,} written")
    if state.finished:
        return lines
    left = {stage for stage, n in fates.waiting.items() if n} if not fates.complete else set()
    waiting |= {step: int(bool(left & before)) for step, before in _STEPS.items()}
    seconds = seconds_left(state.activity, waiting)
    if seconds is not None:
        unknown = [s for s, n in waiting.items() if n and s not in state.activity.stages]
        without = f", without {', '.join(unknown)}" if unknown else ""
        lines.append(f"  time left: about {duration(seconds)} at the pace so far{without}")
    return lines


def _errors(state: RunState) -> list[str]:
    """Return a line per part and stage whose last try failed."""
    return [
        f"  failed: {stage} {part} ({state.activity.tries[stage, part]} tries): "
        f"{visible(without_secrets(error), _ERROR)}"
        for (stage, part), error in sorted(state.activity.failing.items())
    ]


def _funnel(state: RunState, fates: Fates) -> list[str]:
    counted = fates.funnel()
    lines = []
    if state.finished and state.manifest is not None:
        final = state.manifest["funnel"]
        lines.append(format_funnel(final))
        if {k: v for k, v in counted.items() if k != "waiting"} == final:
            return lines
        lines.append("\nthe tables have changed since; they give:")
    lines += ["so far:", format_funnel(counted)]
    lines += [f"{'waiting for ' + stage:<36}{n:>12,}" for stage, n in counted["waiting"].items()]
    broken = [each.text for each in sums(counted, None) if not each.holds]
    # A table may have been replaced between two reads; else something is damaged.
    return lines + [f"does not add up: {text}" for text in broken]


def _group(title: str, kind: str, reason: str, examples: list[Example]) -> list[str]:
    text = meaning(reason)
    lines = [f"{title}, {reason}" + (f": {text}" if text else "")]
    return [*lines, *(_line(kind, example) for example in examples)]


def _line(kind: str, example: Example) -> str:
    facts: list[Any] = [f"row {example.row:<9}"]
    if example.finding:
        facts.append(example.finding)
    if example.copy_of:
        facts.append(f"copy of {example.copy_of}")
    if kind != FAILED and example.captions:
        facts.append(f"“{visible(example.captions[0].text, _TEXT)}”")
    facts.append(visible(without_secrets(example.url), _URL))
    return "  " + "  ".join(facts).rstrip()


__all__ = ["describe_run"]
