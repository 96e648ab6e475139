"""Parts: the source cut once into stable row ranges, and the fingerprints of what is made of them.

Workers and retries never re-cut the source, so a part's number and rows stay the same for the life
of a run directory (DESIGN: run directory contract).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.sources.row import Source, meta_types, to_table
from pipeline.storage import Directory

PARTS = "parts"
_LISTING = "parts.json"


@dataclass(frozen=True)
class Part:
    """Rows `[first_row, first_row + rows)` of the source."""

    index: int
    first_row: int
    rows: int
    fingerprint: str

    @property
    def name(self) -> str:
        """File stem of everything made of this part."""
        return f"{self.index:05d}"

    def table(self, run: Directory) -> pa.Table:
        """Return the part's source rows."""
        data = (run / PARTS).read_bytes(f"{self.name}.arrow")
        return pa.ipc.open_file(pa.py_buffer(data)).read_all()


def fingerprint(stage: str, version: int, settings: Any, inputs: Iterable[str]) -> str:
    """Return hash(stage name, stage version, the settings it reads, input fingerprints)."""
    content = json.dumps([stage, version, settings, list(inputs)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def cut(run: Directory, source: Source, rows_per_part: int) -> list[Part]:
    """Write the source's rows as `parts/NNNNN.arrow`, or return the parts already cut from it."""
    mark = fingerprint("source", 1, rows_per_part, [source.fingerprint()])
    known = _read_listing(run, mark)
    if known is not None:
        return known
    parts: list[Part] = []
    directory = run / PARTS
    # Were this cut killed, the old list would name parts that hold other rows by now.
    directory.remove(_LISTING)
    for rows in _chunks(source.rows(), rows_per_part):
        sink = pa.BufferOutputStream()
        table = to_table(rows, meta_types(rows))
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        first = parts[-1].first_row + parts[-1].rows if parts else 0
        part = Part(len(parts), first, len(rows), hashlib.sha256(data).hexdigest())
        directory.write_bytes(f"{part.name}.arrow", data)
        parts.append(part)
    for stale in set(directory.names("*.arrow")) - {f"{part.name}.arrow" for part in parts}:
        directory.remove(stale)
    directory.write_json(_LISTING, {"source": mark, "parts": [asdict(part) for part in parts]})
    return parts


def listed(run: Directory) -> list[Part]:
    """Return the parts of a run directory as last cut, whatever the config says now."""
    if not (run / PARTS).exists(_LISTING):
        return []
    return [Part(**entry) for entry in (run / PARTS).read_json(_LISTING)["parts"]]


def _read_listing(run: Directory, mark: str) -> list[Part] | None:
    if not (run / PARTS).exists(_LISTING):
        return None
    listing = (run / PARTS).read_json(_LISTING)
    return listed(run) if listing["source"] == mark else None


def _chunks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
