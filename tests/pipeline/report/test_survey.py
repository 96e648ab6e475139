"""One pass over a run: its memory does not grow with rows, its counts are those of the tables."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.report.fates import Fates
from pipeline.report.measures import IMAGE, SCORE, Measure
from pipeline.report.picks import Picks
from pipeline.report.state import read_state
from pipeline.report.survey import Survey
from pipeline.storage import Directory


def surveyed(run: Path, times: int = 1) -> Survey:
    survey = Survey(Fates(Picks(10, 10)))
    tables = read_state(Directory(run)).tables()
    for _ in range(times):
        for part in tables:
            survey.add(part)
    return survey


def test_counts_are_those_of_the_tables(run: Path) -> None:
    survey = surveyed(run)
    sizes, sources, alignments = [], Counter[str](), []
    for path in sorted((run / "tables" / "filter").glob("0*.parquet")):
        table = pq.read_table(path, columns=["width", "height"]).to_pylist()
        sizes += [min(row["width"], row["height"]) for row in table if row["width"]]
        scored = pq.read_table(run / "tables" / "score" / path.name).to_pylist()
        chosen = pq.read_table(run / "tables" / "choose" / path.name).to_pylist()
        for row, verdict in zip(scored, chosen, strict=True):
            pairs = zip(row["captions"], verdict["caption_reasons"], strict=True)
            for caption, reason in pairs:
                if caption["source"] == "alt":
                    alignments.append(caption["alignment"])
                if reason is None and verdict["reason"] is None:
                    sources[caption["source"]] += 1
    assert survey.sources == sources
    shorter = survey.measures[Measure("shorter_side", IMAGE)]
    assert shorter.total == len(sizes)
    assert shorter.quantile(0) == min(sizes)
    alignment = survey.scores[Measure("alignment", SCORE), True]
    median = np.quantile([a for a in alignments if a is not None], 0.5, method="inverted_cdf")
    assert abs(alignment.quantile(0.5) - median) <= 0.001
    assert sum(survey.splits.values()) == survey.fates.funnel()["kept"]


def test_memory_does_not_grow_with_rows(run: Path) -> None:
    def peak(times: int) -> int:
        tracemalloc.start()
        survey = surveyed(run, times)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert all(len(picks) <= 10 for picks in survey.fates.picks.groups.values())
        return held

    peak(1)  # what is imported and cached at first use
    assert peak(12) <= 1.1 * peak(2)
