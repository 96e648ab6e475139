"""The end of a run: `selection.parquet`, `shards/index.parquet` and, last, `manifest.json`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PipelineConfig
from pipeline.funnel import check, count_rows
from pipeline.part import Part
from pipeline.schema import INDEX_FILE, MANIFEST_FILE, META_PREFIX, SCHEMA_VERSION, index_schema
from pipeline.settings import to_yaml
from pipeline.stages.pack import SHARDS, Shard
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

SELECTION = "selection.parquet"
_TOOLS = ("tcjepa", "img2dataset", "webdataset", "pyarrow", "opencv-python-headless", "spacy")


def build_manifest(
    config: PipelineConfig,
    run: Directory,
    parts: list[Part],
    sound: list[Part],
    shards: list[Shard],
) -> dict[str, Any]:
    """Return the manifest of a finished run; raises `AssertionError` if a sum does not hold."""
    funnel = count_rows(run, parts, sound)
    check(funnel)
    entries = [_shard_entry(run, shard) for shard in shards]
    samples = sum(entry["samples"] for entry in entries)
    assert samples == funnel["kept"], f"{samples} samples packed, {funnel['kept']} kept"
    # Where the run directory lies, and on what machines it was made, change nothing in the shards.
    made_of = config.model_copy(update={"run": "", "cluster": type(config.cluster)()})
    return {
        "schema_version": SCHEMA_VERSION,
        "config_sha256": hashlib.sha256(to_yaml(made_of).encode()).hexdigest(),
        "tools": {name: _version(name) for name in _TOOLS} | {"python": platform.python_version()},
        "shards": entries,
        "samples": samples,
        "funnel": funnel,
    }


def write_results(
    run: Directory, sound: list[Part], shards: list[Shard], manifest: dict[str, Any]
) -> None:
    """Write selection, index and manifest, and remove shards that an earlier config left."""
    run.write_table(SELECTION, _selection(run, sound))
    target = run / SHARDS
    target.write_table(INDEX_FILE, _index(run, shards))
    wanted = {f"{shard.name}.tar" for shard in shards}
    for stale in set(target.names("*.tar")) - wanted:
        target.remove(stale)
    target.write_json(MANIFEST_FILE, manifest)


def _selection(run: Directory, sound: list[Part]) -> pa.Table:
    """Return uid → kept, or the first reason the image was dropped; one row per distinct image."""
    tables = []
    for part in sound:
        selected = tables_of(run, "select").read_table(
            f"{part.name}.parquet", ["row", "uid", "reason", "representative"]
        )
        scored = tables_of(run, "score").read_table(f"{part.name}.parquet", ["row", "reason"])
        late = dict(zip(scored["row"].to_pylist(), scored["reason"].to_pylist(), strict=True))
        own = [row for row in selected.to_pylist() if row["reason"] != "exact_duplicate"]
        for row in own:
            row["reason"] = row["reason"] or late.get(row["row"])
        tables.append(
            pa.table(
                {
                    "uid": pa.array([row["uid"] for row in own], pa.string()),
                    "kept": pa.array([row["reason"] is None for row in own], pa.bool_()),
                    "reason": pa.array([row["reason"] for row in own], pa.string()),
                    "copy_of": pa.array([row["representative"] for row in own], pa.string()),
                }
            )
        )
    return pa.concat_tables(tables)


def _index(run: Directory, shards: list[Shard]) -> pa.Table:
    if not shards:
        return index_schema([]).empty_table()
    tables = [_pack_table(run, shard) for shard in shards]
    fixed = index_schema([])
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if field.name.startswith(META_PREFIX):
                kinds.setdefault(field.name, set()).add(field.type)
    meta = [pa.field(name, _common(types)) for name, types in kinds.items()]
    schema = index_schema(meta)
    for name in kinds:
        tables = [
            t if name in t.column_names else t.append_column(name, pa.nulls(t.num_rows))
            for t in tables
        ]
    columns = [*fixed.names, *kinds]
    return pa.concat_tables([table.select(columns).cast(schema) for table in tables])


def _common(types: set[pa.DataType]) -> pa.DataType:
    """Return a type that holds all of `types`; parts may have inferred different ones."""
    known = {kind for kind in types if not pa.types.is_null(kind)}
    if not known:
        return pa.string()
    if len(known) == 1:
        return known.pop()
    return pa.float64() if known == {pa.int64(), pa.float64()} else pa.string()


def _shard_entry(run: Directory, shard: Shard) -> dict[str, Any]:
    directory = tables_of(run, "pack")
    with directory.fs.open(directory.path(f"{shard.name}.parquet"), "rb") as file:
        metadata = pq.read_schema(file).metadata
    return {
        "name": f"{shard.name}.tar",
        "sha256": metadata[b"sha256"].decode(),
        "bytes": int(metadata[b"bytes"]),
        "samples": len(shard.samples),
    }


def _pack_table(run: Directory, shard: Shard) -> pa.Table:
    table = tables_of(run, "pack").read_table(f"{shard.name}.parquet")
    return table.replace_schema_metadata(None)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
