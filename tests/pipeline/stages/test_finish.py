"""The index over all shards; what `finish` counts is in `test_funnel`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.stages.finish import _index_schema
from pipeline.stages.task import tables_of
from pipeline.storage import Directory


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
