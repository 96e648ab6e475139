"""`forget`: the order in which a run forgets images, so that a killed one can be run again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from pipeline.config import PipelineConfig
from pipeline.fingerprints import Fingerprints
from pipeline.forget.listing import forgotten_uids, record
from pipeline.forget.shards import cut_plan, pack_again
from pipeline.forget.tables import (
    blank_download,
    copies_of,
    drop_elsewhere,
    drop_references,
    drop_rows,
    parts_of,
    present,
    rows_with,
)
from pipeline.forget.tars import blank_raw
from pipeline.lock import locked
from pipeline.manifest import write_manifest
from pipeline.part import listed, with_generations
from pipeline.run import CONFIG, report_run
from pipeline.schema import MANIFEST_FILE, UID_LENGTH, is_uid
from pipeline.settings import ConfigError, load_text
from pipeline.stages import finish
from pipeline.stages.task import ALL, SHARDS, Task, is_done, tables_of
from pipeline.storage import Directory


@dataclass(frozen=True)
class Forgotten:
    """What was done: the uids with their copies, and how many rows and shards they were in.

    `unknown` are those that no table of the run has, now or at an earlier call; they are recorded
    like the others. `outside` are tars of the source's own that still hold some.
    """

    uids: list[str]
    unknown: list[str]
    rows: int
    shards: int
    outside: list[str]


def forget(url: str, uids: Collection[str]) -> Forgotten:
    """Remove images from a run's raw files, tables, shards and report, and record that.

    Known near-duplicates go too: they are the same picture, and share its captions. Idempotent:
    after a kill, the same command ends the work. Raises `ConfigError` for a malformed uid, or if
    `url` is no finished run.
    """
    for uid in uids:
        if not is_uid(uid):
            raise ConfigError(f"{uid!r} is no uid: {UID_LENGTH} hex digits, as in the index")
    run = Directory(url)
    if not (run / SHARDS).exists(MANIFEST_FILE):
        raise ConfigError(
            f"{url} is not a finished run (it has no manifest); finish it with `shards`, or block "
            "the images before with filter.block.uids"
        )
    with locked(run):
        state = _State(run)
        state.check()
        before = set(forgotten_uids(run))
        unknown = set(uids) - before
        unknown -= present(run, unknown)
        # With what an earlier call was to take out: if it was killed, some of it may still be here,
        # and what tied a copy to its image may not.
        everything = copies_of(run, {*uids, *before}) | before
        wanted = copies_of(run, uids) | (everything - before) | present(run, before)
        # First of all: whatever happens now, no later run brings them back.
        record(run, everything)
        rows, outside = _forget_in_parts(run, everything)
        shards = _forget_in_shards(state, everything)
    return Forgotten(sorted(wanted - unknown), sorted(unknown), rows, shards, outside)


def _forget_in_parts(run: Directory, uids: set[str]) -> tuple[int, list[str]]:
    gone = pa.array(sorted(uids), pa.string())
    drop_references(run, gone)
    count = 0
    outside: set[str] = set()
    for part in parts_of(run, gone):
        rows = rows_with(run, part, gone)
        count += len(rows)
        outside.update(blank_raw(run, rows.select(["raw", "image_offset"]).to_pylist()))
        drop_rows(run, part, gone)
        # Last: it says where the images lie, so a kill before leaves what is needed to go on.
        blank_download(run, part, gone)
    drop_elsewhere(run, gone)
    return count, sorted(outside)


def _chosen(run: Directory) -> set[str]:
    """Return the parts that the shards were made of; tables of others are of earlier runs."""
    tables = tables_of(run, "choose")
    if not tables.exists(f"{ALL}.parquet"):
        return set()
    return set(tables.read_table(f"{ALL}.parquet", ["part"])["part"].to_pylist())


class _State:
    """The run as it was finished: its config and its parts."""

    def __init__(self, run: Directory) -> None:
        self.run = run
        self.config = load_text(PipelineConfig, run.read_bytes(CONFIG).decode(), where=CONFIG)
        self.parts = with_generations(run, listed(run))
        self.sound = [part for part in self.parts if part.name in _chosen(run)]
        self.marks = Fingerprints(self.config, self.sound)

    def check(self) -> None:
        """Raise `ConfigError` if the tables are not those that the shards were made of."""
        marks = {
            "select": self.marks.select,
            "choose": self.marks.choose,
            "finish": self.marks.finish(self.parts),
        }
        for stage, mark in marks.items():
            if not is_done(self.run, stage, ALL, mark):
                raise ConfigError(
                    f"{self.run.url}: its {stage} tables are not those its shards were made of "
                    "(thresholds were tried, or a run did not end); run `shards` to its end first"
                )


def _forget_in_shards(state: _State, uids: set[str]) -> int:
    run = state.run
    cut_plan(run, uids)
    packed = pack_again(run, state.marks)
    task = Task(run, "finish", state.marks.finish(state.parts))
    rows = {part.name: part.rows for part in state.parts}
    finish.finish(task, rows, [part.name for part in state.sound])
    write_manifest(state.config, run)
    report_run(run)
    return packed
