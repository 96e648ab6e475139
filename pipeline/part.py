"""Parts: the source cut once into stable row ranges, and the fingerprints of what is made of them.

Workers and retries never re-cut the source, so a part's number and rows stay the same for the life
of a run directory (DESIGN: run directory contract).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.row import MARK, Source, meta_types, to_table
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

PARTS = "parts"
_LISTING = "parts.json"
_GENERATIONS = "generations.json"


@dataclass(frozen=True)
class Part:
    """Rows `[first_row, first_row + rows)` of the source."""

    index: int
    first_row: int
    rows: int
    fingerprint: str
    generation: int = 0  # how often its transient failures were asked to be fetched again

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
        marks = [str(row.pop(MARK, "")) for row in rows]
        table = to_table(rows, meta_types(rows))
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        first = parts[-1].first_row + parts[-1].rows if parts else 0
        digest = hashlib.sha256(data)
        if any(marks):  # images that are read from files may change where their rows do not
            digest.update("|".join(marks).encode())
        part = Part(len(parts), first, len(rows), digest.hexdigest())
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


def with_generations(run: Directory, parts: list[Part]) -> list[Part]:
    """Return the parts with the number of times that `retry_transient` was asked of each."""
    if not (run / PARTS).exists(_GENERATIONS):
        return parts
    generations = (run / PARTS).read_json(_GENERATIONS)
    return [replace(part, generation=generations.get(part.fingerprint, 0)) for part in parts]


def retry_transient(run: Directory, parts: list[Part], done: set[str]) -> list[Part]:
    """Have the transient failures of parts that are `done` fetched again: raise their generation.

    The generation is part of the fingerprint and lasts, so a killed retry goes on. Parts that are
    not done are fetched anyway.
    """
    raised = []
    for part in parts:
        again = part.name in done and _has_transient(run, part)
        raised.append(replace(part, generation=part.generation + 1) if again else part)
    # By what is in a part, so that a list that only grew keeps what it had fetched again.
    generations = {part.fingerprint: part.generation for part in raised if part.generation}
    (run / PARTS).write_json(_GENERATIONS, generations)
    return raised


def _has_transient(run: Directory, part: Part) -> bool:
    failures = tables_of(run, "download").read_table(f"{part.name}.parquet", ["failure"])
    return "transient" in pc.unique(failures["failure"]).to_pylist()


def _read_listing(run: Directory, mark: str) -> list[Part] | None:
    if not (run / PARTS).exists(_LISTING):
        return None
    listing = (run / PARTS).read_json(_LISTING)
    return listed(run) if listing["source"] == mark else None


def _chunks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk
