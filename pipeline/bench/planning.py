"""What it costs to find out that there is nothing to do: the plan of runs of 100 and 1,000 parts.

Every stage's table of every part is there with the fingerprint it should have, so each has to be
opened; that is the work that comes before the first task of a resumed run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PipelineConfig
from pipeline.fingerprints import Fingerprints
from pipeline.part import cut
from pipeline.plan import describe_plan
from pipeline.settings import build
from pipeline.sources.build import build_source
from pipeline.stages.task import Task
from pipeline.storage import Directory
from pipeline.timing import Bench, Case, measure


def bench_planning(parts: int, rounds: int) -> Bench:
    """Compare parts planned per second in a run of `parts` parts and in one of a tenth of that."""
    few = max(parts // 10, 1)
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as folder:
        cases = [
            Case(f"{count:,} parts", _plan(Path(folder) / str(count), count))
            for count in (few, parts)
        ]
        baseline = f"{few:,} parts"
        return measure("planning a finished run", "parts/s", cases, rounds, baseline=baseline)


def _plan(folder: Path, parts: int) -> Callable[[], int]:
    folder.mkdir()
    config = _finished(folder, parts)

    def run() -> int:
        text = describe_plan(config)
        assert f"{'score':<10} {parts} of {parts} parts done" in text, text
        return parts

    return run


def _finished(folder: Path, parts: int) -> PipelineConfig:
    """Write a list of as many rows as parts, and empty tables with the right fingerprints."""
    urls = [f"https://example.org/{number}.jpg" for number in range(parts)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), folder / "list.parquet")
    data = {
        "run": str(folder / "run"),
        "part_rows": 1,
        "source": {"kind": "urls", "paths": str(folder / "list.parquet")},
    }
    config = build(PipelineConfig, data)
    run = Directory(config.run)
    cut_parts = cut(run, build_source(config.source), config.part_rows)
    marks = Fingerprints(config, cut_parts)
    empty = pa.table({"row": pa.array([], pa.int64())})
    stages = {
        "download": marks.download,
        "filter": marks.filter,
        "recaption": marks.recaption,
        "score": marks.score,
    }
    for part in cut_parts:
        for stage, mark in stages.items():
            Task(run, stage, mark(part)).write(part.name, empty)
    return config
