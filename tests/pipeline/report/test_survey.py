"""One pass over a run: its memory does not grow with rows, its counts are those of the tables."""

from __future__ import annotations

import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.report.examples import read_examples
from pipeline.report.fates import Fates
from pipeline.report.measures import IMAGE, SCORE, Measure
from pipeline.report.picks import KEPT, Picks
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
    def held(times: int) -> int:
        survey = surveyed(run, times)
        assert all(len(picks) <= 10 for picks in survey.fates.picks.groups.values())
        return len(pickle.dumps(survey))

    # Counts grow by a few digits. By then all have been made that the same rows can make.
    assert held(30) - held(15) < surveyed(run, 15).fates.funnel()["rows"]  # less than a byte a row


def test_kept_examples_show_what_ends_in_a_shard(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    dropped: dict[int, list[str]] = {}
    for path in sorted((copy / "tables" / "choose").glob("0*.parquet")):
        table, scored = pq.read_table(path), pq.read_table(copy / "tables" / "score" / path.name)
        reasons = [["low_quality", *row[1:]] for row in table["caption_reasons"].to_pylist()]
        place = table.schema.get_field_index("caption_reasons")
        kind = table.schema.field(place).type
        pq.write_table(table.set_column(place, "caption_reasons", pa.array(reasons, kind)), path)
        for row in scored.to_pylist():
            dropped[row["row"]] = row["captions"][0]["text"]
    state = read_state(Directory(copy))
    fates = Fates(Picks(10, 10))
    for part in state.tables():
        fates.add(part)
    examples = read_examples(state.tables(), fates, state.config)
    kept = examples[KEPT, ""]
    assert len(kept) == 10
    for example in kept:
        assert dropped[example.row] not in [caption.text for caption in example.captions]
    by_kind = [g for (kind, reason), g in examples.items() if reason == "low_quality"]
    assert {len(e.captions) for group in by_kind for e in group} == {1}
    assert all(e.captions[0].text == dropped[e.row] for group in by_kind for e in group)
