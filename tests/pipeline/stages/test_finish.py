"""The index over all shards; what `finish` counts is in `test_funnel`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.filters.config import FilterConfig
from pipeline.settings import build
from pipeline.stages.finish import _blocked_copies, _index_schema, _selection
from pipeline.stages.task import tables_of
from pipeline.storage import Directory
from tests.pipeline.stages.measured_rows import Row, run_select, uid


def test_the_selection_has_each_image_once_wherever_its_copies_are_blocked(tmp_path: Path) -> None:
    """A copy from a blocked host is no duplicate; the image has the verdict of the others."""
    run = Directory(tmp_path)
    bad, good = "http://bad.example/a.jpg", "http://good.example/a.jpg"
    caption = ("a red star",)
    parts = [
        [Row("A", caption, url=bad), Row("D", caption, url=bad), Row("E", caption, url=bad)],
        [Row("A", caption, url=good), Row("A", caption, url=good), Row("D", caption, url=bad)],
    ]
    blocked = build(FilterConfig, {"block": {"hosts": ["bad.example"]}})
    found, _ = run_select(run, parts, blocked)
    kept = [row["row"] for row in found if row["reason"] is None]
    names = ["00000", "00001"]
    for name in names:
        chosen = {"row": pa.array(kept, pa.int64()), "reason": pa.nulls(len(kept), pa.string())}
        tables_of(run, "choose").write_table(f"{name}.parquet", pa.table(chosen))
    spare = _blocked_copies(run, names)
    selection = pa.concat_tables([_selection(run, name, spare) for name in names]).to_pylist()
    assert [(row["uid"], row["reason"]) for row in selection] == [
        (uid("D"), "blocked_host"), (uid("E"), "blocked_host"), (uid("A"), None)
    ]  # fmt: skip


def test_the_index_holds_ids_that_no_float_does(tmp_path: Path) -> None:
    """Pandas makes them floats where one is missing; then a column has both, part by part."""
    run = Directory(tmp_path)
    shards = {"a": ([2**60 + 1, 3], [1, 2]), "b": ([0.5, None], [0.5, 1.5])}
    for shard, (ids, numbers) in shards.items():
        table = pa.table({"meta.id": ids, "meta.n": numbers})
        tables_of(run, "pack").write_table(f"{shard}.parquet", table)
    both = _index_schema(run, ["a", "b"])
    assert (both.field("meta.id").type, both.field("meta.n").type) == (pa.string(), pa.float64())
    assert _index_schema(run, ["a"]).field("meta.id").type == pa.int64()
