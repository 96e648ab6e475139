"""Take rows out of the tables between stages, fingerprints untouched."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stages.failures import FAILURES
from pipeline.stages.task import TABLES, tables_of
from pipeline.storage import Directory

#: Why a forgotten row has no image any more.
REASON = "forgotten"
# Columns of the download table that stay: the row is still counted, as failed.
_STAY = ("row", "split", "failure", "reason")
# These have rows of their own treatment, or none with a uid.
_APART = ("download", "plan", "pack", "finish", "fit")


def copies_of(run: Directory, uids: Collection[str]) -> set[str]:
    """Return `uids` with every known copy of their images.

    Exact copies share the uid; near-duplicates share the image that `select` kept for them, whose
    captions are pooled. (Semantic duplicates are other photographs and stay.)
    """
    leaders = _matching(run, "uid", uids, "pooled_by") | set(uids)
    return leaders | _matching(run, "pooled_by", leaders, "uid")


def _matching(run: Directory, key: str, values: Collection[str], wanted: str) -> set[str]:
    """Return the `wanted` column of the selected copies whose `key` is one of the values."""
    among = pa.array(sorted(values), pa.string())
    found: set[str] = set()
    for name in tables_of(run, "select").names("[0-9]*.parquet"):
        table = tables_of(run, "select").read_table(name, ["uid", "pooled_by"])
        copies = table.filter(pc.is_valid(table["pooled_by"]))
        found.update(copies.filter(pc.is_in(copies[key], value_set=among))[wanted].to_pylist())
    return found


def rows_with(run: Directory, part: str, uids: pa.Array) -> pa.Table:
    """Return the rows of a part's download table that hold one of the images."""
    table = tables_of(run, "download").read_table(f"{part}.parquet")
    return table.filter(pc.is_in(table["uid"], value_set=uids))


def blank_download(run: Directory, part: str, uids: pa.Array) -> None:
    """Turn the rows of the images in a part's download table into failures."""
    table, fingerprint = _read(run, "download", part)
    _write(run, "download", part, blanked(table, uids), fingerprint)


def blanked(table: pa.Table, uids: pa.Array) -> pa.Table:
    """Return a download table in which the images are failures: no URL, captions or metadata."""
    gone = pc.is_in(table["uid"], value_set=uids)
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name == "captions":
            empty = pa.scalar([], column.type)
            columns[name] = pc.if_else(gone, empty, column)
        elif name == "failure":
            columns[name] = pc.if_else(gone, FAILURES[REASON][0], column)
        elif name == "reason":
            columns[name] = pc.if_else(gone, REASON, column)
        elif name in _STAY:
            columns[name] = column
        else:
            columns[name] = pc.if_else(gone, pa.scalar(None, column.type), column)
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def drop_rows(run: Directory, part: str, uids: pa.Array) -> None:
    """Drop the images' rows from every other stage's tables of a part."""
    for stage in _stages(run):
        # Answers of captioners may lie in several files, `<part>-….parquet`.
        for name in tables_of(run, stage).names(f"{part}*.parquet"):
            _drop(run, stage, name.removesuffix(".parquet"), uids)


def drop_references(run: Directory, uids: pa.Array) -> None:
    """Drop the images' captions from those that `fit` keeps for comparison."""
    for name in tables_of(run, "fit").names("*.parquet"):
        _drop(run, "fit", name.removesuffix(".parquet"), uids)


def _drop(run: Directory, stage: str, name: str, uids: pa.Array) -> None:
    table, fingerprint = _read(run, stage, name)
    if "uid" not in table.column_names:
        return
    kept = table.filter(pc.invert(pc.is_in(table["uid"], value_set=uids)))
    lost = _lost_captions(kept, uids) if stage == "select" else None
    if lost is not None or len(kept) < len(table):
        _write(run, stage, name, kept if lost is None else lost, fingerprint)


def _lost_captions(selected: pa.Table, uids: pa.Array) -> pa.Table | None:
    """Mark captions that were pooled into a forgotten image; None if there are none."""
    followers = pc.is_in(selected["pooled_by"], value_set=uids)
    if not pc.any(followers).as_py():
        return None
    lists = [
        [reason or "image_dropped" for reason in reasons] if follows else reasons
        for reasons, follows in zip(
            selected["caption_reasons"].to_pylist(), followers.to_pylist(), strict=True
        )
    ]
    place = selected.column_names.index("caption_reasons")
    kind = selected.schema.field(place).type
    return selected.set_column(place, "caption_reasons", pa.array(lists, kind))


def _stages(run: Directory) -> list[str]:
    directory = run / TABLES
    return [name for name in directory.names() if name not in _APART]


def _read(run: Directory, stage: str, part: str) -> tuple[pa.Table, str | None]:
    directory = tables_of(run, stage)
    name = f"{part}.parquet"
    return directory.read_table(name), directory.fingerprint(name)


def _write(run: Directory, stage: str, part: str, table: pa.Table, fingerprint: str | None) -> None:
    tables_of(run, stage).write_table(f"{part}.parquet", table, fingerprint)


def parts_of(run: Directory, uids: pa.Array) -> list[str]:
    """Return the parts whose tables name one of the images, as their own or as the copy kept."""
    found = []
    for name in tables_of(run, "download").names("[0-9]*.parquet"):
        part = name.removesuffix(".parquet")
        holds = _mentions(run, "download", part, "uid", uids)
        # A forget that was killed has blanked the download table first.
        holds = holds or _mentions(run, "select", part, "uid", uids)
        if holds or _mentions(run, "select", part, "pooled_by", uids):
            found.append(part)
    return found


def present(run: Directory, uids: Collection[str]) -> set[str]:
    """Return those of the images that some part's tables still have a row of."""
    wanted = pa.array(sorted(uids), pa.string())
    found: set[str] = set()
    for stage in ("download", "select"):
        for name in tables_of(run, stage).names("[0-9]*.parquet"):
            column = tables_of(run, stage).read_table(name, ["uid"])["uid"]
            found.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return found


def drop_elsewhere(run: Directory, uids: pa.Array) -> None:
    """Drop the images' rows from tables of other parts: of captions and embeddings from before the
    rows were cut anew, which a run would take up again.
    """
    for stage in _stages(run):
        for name in tables_of(run, stage).names("[0-9]*.parquet"):
            part = name.removesuffix(".parquet")
            if _mentions(run, stage, part, "uid", uids):
                _drop(run, stage, part, uids)


def _mentions(run: Directory, stage: str, part: str, column: str, uids: pa.Array) -> bool:
    directory = tables_of(run, stage)
    if not directory.exists(f"{part}.parquet"):
        return False
    table = directory.read_table(f"{part}.parquet", [column])
    if column not in table.column_names:
        return False
    return bool(pc.any(pc.is_in(table[column], value_set=uids)).as_py())
