"""How well scores tell right from swapped captions after a fit on captions many of which are."""

from __future__ import annotations

from pipeline.part import listed
from pipeline.schema import SCORES
from pipeline.scorers.calibration.measure import RIGHT, SWAPPED, Group, mean_scores
from pipeline.scorers.calibration.truth import read_truth
from pipeline.scorers.calibration.world import WorldRun
from pipeline.stages.task import tables_of


def bars(world: WorldRun) -> dict[str, dict[str, float | None]]:
    """Return AUC by score of right against swapped, as the run scored them itself.

    "caption set": the mean over an image's captions. "alt text" and "alt text, two or more
    things": one caption.
    """
    parts = [part.name for part in listed(world.run)]
    truth = read_truth(world.run, parts, None)
    groups = {name: Group() for name in ("caption set", "alt text", "alt text, two or more things")}
    for part in parts:
        for row in tables_of(world.run, "score").read_table(f"{part}.parquet").to_pylist():
            fault = SWAPPED if world.swapped[row["uid"]] else RIGHT
            groups["caption set"].add(fault, mean_scores(row["captions"]))
            first = row["captions"][0]
            groups["alt text"].add(fault, first)
            if truth.things_named(first["text"]) >= 2:
                groups["alt text, two or more things"].add(fault, first)
    return {name: group.aucs()[SWAPPED] for name, group in groups.items()}


def table(found: dict[str, dict[str, float | None]]) -> str:
    """Return the bars as a Markdown table."""
    lines = ["| right against swapped | " + " | ".join(SCORES) + " |"]
    lines.append("|" + " --- |" * (len(SCORES) + 1))
    for name, values in found.items():
        cells = ["–" if v is None else f"{v:.3f}" for v in (values[score] for score in SCORES)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
