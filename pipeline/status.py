"""How far a run is, and where its rows went; works while it runs and after."""

from __future__ import annotations

import json
from collections import Counter

from pipeline.engine import EVENTS
from pipeline.funnel import format_funnel
from pipeline.part import listed
from pipeline.schema import MANIFEST_FILE
from pipeline.settings import ConfigError
from pipeline.stages.task import SHARDS, tables_of
from pipeline.storage import Directory

_PART_STAGES = ("download", "filter", "recaption", "score")


def describe_run(url: str) -> str:
    """Return a run's progress by stage, its failures, and the funnel once it has finished.

    Raises `ConfigError` if `url` is no run directory.
    """
    run = Directory(url)
    parts = listed(run)
    if not parts:
        raise ConfigError(f"{url} is not a run directory (it has no parts)")
    lines = [f"{url}: {sum(part.rows for part in parts):,} rows in {len(parts)} parts"]
    for stage in _PART_STAGES:
        done = len(tables_of(run, stage).names("*.parquet"))
        lines.append(f"  {stage:<10} {done} of {len(parts)} parts have a table")
    lines.append(f"  {'shards':<10} {len((run / SHARDS).names('*.tar'))} written")
    lines += _errors(run)
    if (run / SHARDS).exists(MANIFEST_FILE):
        manifest = (run / SHARDS).read_json(MANIFEST_FILE)
        lines += ["", "as last finished:", format_funnel(manifest["funnel"])]
    else:
        lines.append("not finished yet: no manifest")
    return "\n".join(lines)


def _errors(run: Directory) -> list[str]:
    """Return a line per part and stage whose last try failed."""
    if not run.exists(EVENTS):
        return []
    last: dict[tuple[str, str], str | None] = {}
    tries: Counter[tuple[str, str]] = Counter()
    for line in run.read_bytes(EVENTS).decode().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a killed run may be cut short
            continue
        key = event["stage"], event["part"]
        last[key] = event["error"]
        tries[key] += event["error"] is not None
    return [
        f"  failed: {stage} {part} ({tries[stage, part]} tries): {error}"
        for (stage, part), error in sorted(last.items())
        if error
    ]
