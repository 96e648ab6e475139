"""One self-contained page about one or more runs: no script, no network, light and dark."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from pipeline.settings import ConfigError
from tcjepa.config import flat
from tcjepa.evaluate.report import EvaluationResult, measures
from tcjepa.watch.alarms import Finding
from tcjepa.watch.charts import Series, curves, short
from tcjepa.watch.readings import GROUPS, readings_of, values_of
from tcjepa.watch.rules import RULES
from tcjepa.watch.runfiles import RunFiles
from tcjepa.watch.verdict import judge

PAGE: Final = "inspect.html"
#: Colours and dashes that the style sheet has; more runs begin again.
COLOURS: Final = 8
#: Attention images are cut to the first, middle and last step of each, within so many bytes.
_PICTURE_BUDGET: Final = 6_000_000
_ABSENT: Final = "—"
_TILES: Final = (
    ("loss", "loss"), ("text gain", "monitor/text_gain"), ("rank", "monitor/target_encoder_rank"),
    ("feature std", "monitor/target_encoder_std"), ("images/s", "images_per_s"),
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A drawn reading: its last value per run stands below it."""

    title: str
    meaning: str
    key: str
    drawing: Markup
    last: list[tuple[int, str, str]]  # colour, run, value


@dataclass(frozen=True)
class Shown:
    """One run as the page shows it."""

    name: str
    path: str
    colour: int
    state: str
    tiles: list[tuple[str, str]]
    findings: list[Finding]
    unreadable: list[tuple[str, int]]
    pictures: list[tuple[str, list[tuple[int, str]]]]  # uid, [(step, data URI)]
    pictures_left_out: int


def write_page(runs: Sequence[RunFiles], path: Path) -> dict[str, list[Finding]]:
    """Write the page about `runs` to `path`; return what was found, by run name.

    Raises `ConfigError` if the file cannot be written.
    """
    found = {run.name: judge(run) for run in runs}
    text = render(runs, found)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}; name a file in a folder") from error
    return found


def render(runs: Sequence[RunFiles], found: dict[str, list[Finding]]) -> str:
    """Return the page as HTML; everything from the runs is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tcjepa", "watch"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    keys, differing = config_table(runs)
    return environment.get_template("page.html.j2").render(
        style=Markup(style),
        runs=[_shown(run, n % COLOURS, found[run.name], len(runs)) for n, run in enumerate(runs)],
        groups=_groups(runs),
        config=keys,
        differing=differing,
        evaluation=evaluation_table(runs),
        rules=RULES,
    )


def _groups(runs: Sequence[RunFiles]) -> list[tuple[str, str, list[Chart]]]:
    keys = {key for run in runs for record in run.records for key in record}
    groups = []
    for group in GROUPS:
        charts = []
        for reading in readings_of(group, keys):
            series = [
                Series(run.name, number % COLOURS, *values_of(run.records, reading.key))
                for number, run in enumerate(runs)
            ]
            last = [(s.colour, s.name, short(s.values[-1])) for s in series if len(s.values)]
            drawing = curves(series, reading.title, reading.limit)
            charts.append(Chart(reading.title, reading.meaning, reading.key, drawing, last))
        if charts:
            groups.append((group.title, group.question, charts))
    return groups


def _shown(run: RunFiles, colour: int, findings: list[Finding], runs: int) -> Shown:
    tiles = [("steps", f"{run.done:,}" + (f" of {run.steps:,}" if run.steps else ""))]
    for title, key in _TILES:
        _, values = values_of(run.records, key)
        if len(values):
            tiles.append((title, short(values[-1])))
    warnings = sum(not each.is_note for each in findings)
    state = {0: "nothing looks wrong", 1: "1 warning"}.get(warnings, f"{warnings} warnings")
    pictures, left_out = _pictures(run, _PICTURE_BUDGET // runs)
    return Shown(
        run.name, str(run.path), colour, state, tiles, findings,
        run.unreadable.most_common(10), pictures, left_out,
    )  # fmt: skip


def _pictures(run: RunFiles, budget: int) -> tuple[list[tuple[str, list[tuple[int, str]]]], int]:
    """Return each image's first, middle and last picture as data URIs, and how many lack room."""
    by_uid: dict[str, list[Any]] = {}
    for picture in run.pictures:
        by_uid.setdefault(picture.uid, []).append(picture)
    left_out, shown = 0, []
    for uid, own in by_uid.items():
        chosen = list(dict.fromkeys([0, len(own) // 2, len(own) - 1]))
        uris = []
        for number in reversed(chosen):
            data = own[number].path.read_bytes()
            if len(data) > budget:
                left_out += 1
                continue
            budget -= len(data)
            uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            uris.append((own[number].step, uri))
        if uris:
            shown.append((uid, uris[::-1]))
    return shown, left_out


def config_table(runs: Sequence[RunFiles]) -> tuple[list[tuple[str, list[str]]], bool]:
    """Return rows (key, one value per run), and whether they are only those that differ.

    Of one run all keys are shown; of several those in which they differ, but `run` itself.
    """
    configs = [flat(run.config) for run in runs]
    keys = sorted(set().union(*configs))
    rows = [(key, [str(config.get(key, _ABSENT)) for config in configs]) for key in keys]
    if len(runs) == 1:
        return rows, False
    return [(key, own) for key, own in rows if len(set(own)) > 1 and key != "run"], True


def evaluation_table(
    runs: Sequence[RunFiles],
) -> tuple[list[str], list[tuple[str, str, list[str]]], list[str]]:
    """Return (measures, rows of (run, encoder, values), complaints) of final evaluations."""
    rows: list[tuple[str, str, dict[str, str]]] = []
    complaints: list[str] = []
    for run in runs:
        for encoder, content in (run.evaluation or {}).items():
            if encoder in ("step", "settings") or not isinstance(content, dict):
                continue
            try:
                result = EvaluationResult.from_json(json.dumps(content))
            except ValueError:
                complaints.append(f"{run.name}: its evaluation.json is of another version")
                break
            values = {
                name: f"{100 * m.value:.1f} ± {100 * m.error:.1f}"
                for name, m in measures(result).items()
            }
            if result.spectrum is not None:
                values["rank"] = short(result.spectrum.effective_rank)
            if result.text_gain is not None:
                values["text gain"] = short(result.text_gain)
            rows.append((run.name, encoder, values))
    names = list(dict.fromkeys(name for _, _, values in rows for name in values))
    return (
        names,
        [(run, encoder, [own.get(name, _ABSENT) for name in names]) for run, encoder, own in rows],
        complaints,
    )


__all__ = ["PAGE", "config_table", "evaluation_table", "render", "write_page"]
