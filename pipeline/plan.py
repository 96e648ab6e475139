"""What `--dry-run` prints: the parts, the stages, and what an earlier run has finished."""

from __future__ import annotations

from pipeline.config import PipelineConfig
from pipeline.fingerprints import Fingerprints
from pipeline.part import listed, with_generations
from pipeline.run import check
from pipeline.sources.build import build_source
from pipeline.stages.task import TABLES, is_done
from pipeline.storage import Directory


def describe_plan(config: PipelineConfig) -> str:
    """Return the plan of a run as text; reads the source's header and the run directory only.

    Raises `ConfigError` for a source that cannot be read.
    """
    check(config, build_source(config.source))
    run = Directory(config.run)
    parts = listed(run)
    lines = [f"run directory: {config.run}"]
    if not parts:
        lines.append(f"source: {config.source.kind}, not cut yet ({config.part_rows} rows a part)")
    else:
        lines.append(f"source: {config.source.kind}, {len(parts)} parts as last cut")
    parts = with_generations(run, parts)
    marks = Fingerprints(config, parts)
    stages = {
        "download": marks.download,
        "filter": marks.filter,
        "recaption": marks.recaption,
        "score": marks.score,
    }
    for stage, mark in stages.items():
        done = sum(is_done(run, stage, part.name, mark(part)) for part in parts)
        lines.append(f"{stage:<10} {done} of {len(parts)} parts done, to be skipped")
    lines.append(f"tables go to {run.url}/{TABLES}, shards to {run.url}/shards")
    return "\n".join(lines)
