"""Stage `finish`: what ends a run, written part by part so that a run of any size fits a worker.

`selection.parquet`, `shards/index.parquet` and the funnel; the driver writes the manifest from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.filters.reasons import PLACE_REASONS
from pipeline.funnel import Funnel, FunnelCount
from pipeline.schema import INDEX_FILE, META_PREFIX, index_schema
from pipeline.sources.row import FLOAT_HOLDS
from pipeline.stages.shuffle import planned
from pipeline.stages.task import ALL, SHARDS, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 2
SELECTION = "selection.parquet"

_SELECTION = pa.schema(
    [("uid", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()), ("copy_of", pa.string())]
)


_COPY = "exact_duplicate"


def finish(task: Task, rows: dict[str, int], sound: list[str]) -> StageReport:
    """Write selection and index, then the funnel as the stage's mark.

    `rows` has the source rows of every part by name; parts that are not `sound` failed as a whole.
    Raises `AssertionError` if a sum does not hold.
    """
    funnel = FunnelCount()
    for part, count in rows.items():
        if part in set(sound):
            funnel.add_part(task.run, part)
        else:
            funnel.add_failed_part(count)
    counted = funnel.result()
    spare = _blocked_copies(task.run, sound)
    selection = (_selection(task.run, part, spare) for part in sound)
    _write_stream(task.run, SELECTION, _SELECTION, selection)
    shards = [shard.name for shard in planned(task.run)]
    schema = _index_schema(task.run, shards)
    rows_of = (_index_rows(task.run, shard, schema) for shard in shards)
    samples = _write_stream(task.run / SHARDS, INDEX_FILE, schema, rows_of)
    assert samples == counted["kept"], f"{samples} samples packed, {counted['kept']} kept"
    task.write(ALL, pa.table({"funnel": [json.dumps(counted, sort_keys=True)]}))
    return StageReport(counts={"samples": samples})


def read_funnel(run: Directory) -> Funnel:
    """Return the funnel that `finish` counted."""
    found = tables_of(run, "finish").read_table(f"{ALL}.parquet")["funnel"][0].as_py()
    return dict(json.loads(found))


def is_written(run: Directory) -> bool:
    """Return whether selection and index are there."""
    return run.exists(SELECTION) and (run / SHARDS).exists(INDEX_FILE)


def final_reasons(run: Directory, part: str) -> pa.Table:
    """Return a part's fetched rows with their last verdict: row, uid, representative, reason."""
    selected = tables_of(run, "select").read_table(
        f"{part}.parquet", ["row", "uid", "representative", "reason"]
    )
    chosen = tables_of(run, "choose").read_table(f"{part}.parquet", ["row", "reason"])
    place = pc.index_in(selected["row"], value_set=chosen["row"].combine_chunks())
    late = chosen["reason"].take(place)
    return selected.set_column(3, "reason", pc.coalesce(selected["reason"], late))


def _blocked_copies(run: Directory, parts: list[str]) -> pa.Array:
    """Return the rows whose place is blocked and whose image has another row in the selection.

    A blocked place says nothing of copies elsewhere, so such rows are no exact duplicates.
    """
    blocked: list[tuple[int, str]] = []
    for part in parts:
        rows = final_reasons(run, part)
        found = rows.filter(pc.is_in(rows["reason"], value_set=pa.array(PLACE_REASONS)))
        blocked += zip(found["row"].to_pylist(), found["uid"].to_pylist(), strict=True)
    wanted = pa.array(sorted({uid for _, uid in blocked}), pa.string())
    listed: set[str] = set()
    for part in parts if blocked else []:
        rows = final_reasons(run, part)
        apart = pc.is_in(rows["reason"], value_set=pa.array([*PLACE_REASONS, _COPY]))
        uids = rows["uid"].filter(pc.invert(apart))
        listed.update(uids.filter(pc.is_in(uids, value_set=wanted)).to_pylist())
    spare = []
    for row, uid in blocked:
        if uid in listed:
            spare.append(row)
        listed.add(uid)  # the first of those that are all blocked stands for the image
    return pa.array(spare, pa.int64())


def _selection(run: Directory, part: str, spare: pa.Array) -> pa.Table:
    """Return uid → kept, or the first reason the image was dropped; one row per distinct image.

    `spare` are rows of images that have another one.
    """
    rows = final_reasons(run, part)
    left_out = pc.or_(
        pc.fill_null(pc.equal(rows["reason"], _COPY), False),
        pc.is_in(rows["row"], value_set=spare),
    )
    own = rows.filter(pc.invert(left_out))
    columns = [own["uid"], pc.is_null(own["reason"]), own["reason"], own["representative"]]
    return pa.Table.from_arrays(columns, schema=_SELECTION)


def _write_stream(
    directory: Directory, name: str, schema: pa.Schema, tables: Iterable[pa.Table]
) -> int:
    """Commit tables as one Parquet file, holding one at a time; return the number of rows."""
    temporary = directory.temporary(name)
    count = 0
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                count += table.num_rows
        directory.commit(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _index_schema(run: Directory, shards: list[str]) -> pa.Schema:
    """Return the index's schema: metadata columns get a type that holds what all shards hold."""
    kinds: dict[str, set[pa.DataType]] = {}
    wide: set[str] = set()
    for schema, found in _pack_schemas(run, shards):
        wide |= found
        for field in schema:
            if field.name.startswith(META_PREFIX):
                kinds.setdefault(field.name, set()).add(field.type)
    fields = [pa.field(name, _common(types, name in wide)) for name, types in kinds.items()]
    return index_schema(fields)


def _pack_schemas(run: Directory, shards: list[str]) -> Iterator[tuple[pa.Schema, set[str]]]:
    """Yield the schema of each shard's rows, and the columns of integers that no float holds."""
    directory = tables_of(run, "pack")
    for shard in shards:
        with directory.fs.open(directory.path(f"{shard}.parquet"), "rb") as file:
            parquet = pq.ParquetFile(file)
            yield parquet.schema_arrow, _wide(parquet.metadata)


def _index_rows(run: Directory, shard: str, schema: pa.Schema) -> pa.Table:
    table = tables_of(run, "pack").read_table(f"{shard}.parquet").replace_schema_metadata(None)
    for name in schema.names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select(schema.names).cast(schema)


def _wide(metadata: pq.FileMetaData) -> set[str]:
    """Return the columns with integers, such as ids, that a float does not hold."""
    found = set()
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            ends = column.statistics
            if ends is None or not ends.has_min_max or column.physical_type != "INT64":
                continue
            if max(abs(ends.min), abs(ends.max)) > FLOAT_HOLDS:
                found.add(column.path_in_schema)
    return found


def _common(types: set[pa.DataType], wide: bool) -> pa.DataType:
    """Return a type that holds all of `types`; parts may have inferred different ones.

    `wide` columns have integers that no float holds.
    """
    known = {kind for kind in types if not pa.types.is_null(kind)}
    if not known:
        return pa.string()
    if len(known) == 1:
        return known.pop()
    numbers = known == {pa.int64(), pa.float64()}
    return pa.float64() if numbers and not wide else pa.string()


def pack_marks(run: Directory, shard: str) -> dict[str, Any]:
    """Return the checksum and the size [bytes] that `pack` recorded of a shard."""
    directory = tables_of(run, "pack")
    with directory.fs.open(directory.path(f"{shard}.parquet"), "rb") as file:
        metadata = pq.read_schema(file).metadata
    return {"sha256": metadata[b"sha256"].decode(), "bytes": int(metadata[b"bytes"])}
