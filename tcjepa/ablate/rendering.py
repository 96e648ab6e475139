"""`python -m tcjepa.ablate.rendering RESULT.json OUT`: report.md, report.html and its figures.

Everything is made from the `result.json` of a study (`tcjepa.ablate.schema`): no run is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.ablate import schema, tables
from tcjepa.ablate.page import page
from tcjepa.ablate.plots import Picture, pictures
from tcjepa.ablate.schema import StudyResult

REPORT, PAGE = "report.md", "report.html"


def render(result: StudyResult, folder: Path) -> str:
    """Write report, page and a PNG per figure into a folder; return the report's Markdown."""
    drawn = pictures(result)
    out = Directory(folder)
    for picture in drawn:
        out.write_bytes(f"{picture.file}.png", picture.content("png"))
    out.write_text(PAGE, page(result, drawn, summary(result)))
    text = markdown(result, drawn)
    out.write_text(REPORT, text)
    return text


def markdown(result: StudyResult, drawn: list[Picture]) -> str:
    """Return the report as Markdown; figures are named as `render` writes them."""
    parts = [f"# Study {result.name}", *([tables.plain(result.about)] if result.about else [])]
    parts += summary(result)
    found = tables.tables(result)
    parts += [tables.as_markdown(table) for table in found]
    parts += [f"![{tables.plain(picture.caption)}]({picture.file}.png)" for picture in drawn]
    missing = tables.missing_table(result)
    if missing.rows:
        parts.append(tables.as_markdown(missing))
    parts += ["## How to run it again", _code(result.commands[:1])]
    parts += ["\n".join(f"- {line}" for line in made_by(result))]
    parts += [tables.as_markdown(tables.overrides_table(result))]
    if arms := result.commands[1:]:
        parts += [f"One arm alone, with seed {result.seeds[0]}:", _code(arms)]
    return "\n\n".join(parts) + "\n"


def _code(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def summary(result: StudyResult) -> list[str]:
    """Return paragraphs on what was run and how to read its numbers."""
    roles = Counter(arm.role for arm in result.arms if arm.role != "random weights")
    real = {arm.name for arm in result.arms if arm.role != "random weights"}
    finished = sum(trial.arm in real for trial in result.trials)
    total = finished + len(result.missing)
    lines = [
        f"{finished} of {total} runs finished: {sum(roles.values())} arms, seeds "
        f"{', '.join(map(str, result.seeds))}."
        + (f" {len(result.missing)} runs are missing, listed below." if result.missing else "")
    ]
    if result.mixed:
        lines.append("Runs of different code or data are reported together, as `mixed` asked.")
    return [" ".join(lines), *_reading(result)]


def _reading(result: StudyResult) -> list[str]:
    drawn = f"{result.bootstrap.replicates:,} replicates"
    lines = [
        "A value is the mean over seeds. [low, high] is its 95% percentile bootstrap over training "
        f"seeds and test images ({drawn}, the same draws for all arms); ± is half of Student's 95% "
        "interval over seeds."
    ]
    # Of what is finished, not what was asked for.
    seeds = sorted({e.seeds for own in result.estimates.values() for e in own.values() if e.seeds})
    if 1 in seeds:
        lines.append(
            "With one seed neither knows what another seed would give: an interval is of the test "
            "images alone."
        )
    few = [count for count in seeds if 1 < count < 10]
    if few:
        lines.append(
            f"With {tables.span(few)} seeds the bootstrap sees too little of what other seeds "
            "would give; Student's interval allows for that, but sees of the test images only what "
            "differs between seeds. Believe the wider."
        )
    compared = sum(len(record.measures) for record in result.contrasts)
    if compared > 1:
        lines.append(
            f"{compared} differences are listed; of so many 95% intervals, {compared / 20:.1f} "
            "are expected to miss the truth."
        )
    flat = [m.name for m in result.measures if not m.images]
    if flat and len(flat) < len(result.measures):
        lines.append(f"No images are drawn for {', '.join(flat)}, only seeds.")
    elif flat:
        lines.append("The runs kept no tallies of test images, so only seeds are drawn.")
    return [" ".join(lines)]


def made_by(result: StudyResult) -> list[str]:
    """Return lines on what made the result."""
    minutes = "not recorded" if result.minutes is None else f"{result.minutes:,.0f} minutes"
    return [
        *result.provenance,
        f"hardware: {result.hardware}",
        f"wall time of the runs, added up: {minutes}",
        f"result written {result.date} by `{result.command}`",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tcjepa.ablate.rendering", description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of a study")
    parser.add_argument("out", type=Path, help="folder for report.md, report.html and figures")
    parsed = parser.parse_args(arguments)
    try:
        render(schema.read(parsed.result), parsed.out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["PAGE", "REPORT", "made_by", "main", "markdown", "render", "summary"]
