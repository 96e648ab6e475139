"""Blank images in the run's raw tars; every other byte stays where the tables say it is."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.stages.images import RAW
from pipeline.storage import Directory


def blank_raw(run: Directory, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Blank images and what img2dataset recorded of them in the run's raw files.

    `rows` have `raw` and `image_offset`. Tars that a user has deleted are passed over. Returns the
    tars that lie outside the run, which are the source's and are left as they are.
    """
    offsets: dict[str, set[int]] = {}
    for row in rows:
        offsets.setdefault(row["raw"], set()).add(row["image_offset"])
    outside = sorted(tar for tar in offsets if "/" in tar)
    for tar in sorted((set(offsets) - set(outside)).intersection((run / RAW).names("*.tar"))):
        keys = blank_tar(run / RAW, tar, offsets[tar])
        blank_records(run / RAW, f"{tar.removesuffix('.tar')}.parquet", keys)
    return outside


def blank_tar(raw: Directory, name: str, offsets: set[int]) -> set[str]:
    """Blank the members at the offsets and those of the same key; return the keys."""
    temporary = raw.temporary(name)
    try:
        raw.fs.get_file(raw.path(name), str(temporary))
        with tarfile.open(temporary) as tar:
            members = [(_key(m.name), m.name, m.offset_data, m.size) for m in tar]
        keys = {key for key, _, offset, _ in members if offset in offsets}
        with temporary.open("r+b") as file:
            for key, member, offset, size in members:
                if key in keys:
                    file.seek(offset)
                    # Readers of the tar still meet JSON where they expect it.
                    file.write(b"{}".ljust(size) if member.endswith(".json") else bytes(size))
        raw.commit(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)
    return keys


def blank_records(raw: Directory, name: str, keys: Collection[str]) -> None:
    """Drop what img2dataset recorded of the samples of these keys."""
    if not raw.exists(name):
        return
    with raw.fs.open(raw.path(name), "rb") as file:
        records = pq.read_table(file)
    gone = pc.is_in(records["key"], value_set=pa.array(sorted(keys), pa.string()))
    raw.write_table(name, records.filter(pc.invert(gone)))


def _key(member: str) -> str:
    return member.partition(".")[0]
