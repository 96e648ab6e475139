"""What every stage's task is given, and what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.storage import Directory

TABLES = "tables"
SHARDS = "shards"
#: The name of a job that concerns the whole run, and of its table.
ALL = "all"
_READERS = 16
#: Stages of the whole run, each made of the one before.
_WHOLE = ("select", "fit", "choose", "plan", "finish")


@dataclass(frozen=True)
class Task:
    """One stage of one run: where to read and write, and the fingerprint to commit with."""

    run: Directory
    stage: str
    fingerprint: str

    def write(self, name: str, table: pa.Table) -> None:
        """Commit the stage's table of a part."""
        tables_of(self.run, self.stage).write_table(f"{name}.parquet", table, self.fingerprint)


@dataclass(frozen=True)
class StageReport:
    """What a finished task tells the driver; goes into `events.jsonl`.

    `counts` and `bytes` add up over parts; `figures` are anything else worth watching.
    """

    counts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    figures: dict[str, float] = field(default_factory=dict)


def tables_of(run: Directory, stage: str) -> Directory:
    """Return the directory of a stage's tables."""
    return run / TABLES / stage


def discard_measures(run: Directory, part: str) -> None:
    """Delete what was made of a part's images, which are about to be replaced, and the verdicts.

    Fingerprints know settings and inputs, not what servers answer: were a config tried and taken
    back, measures and new captions would be joined, by position, to images that came since.
    """
    for stage in ("filter", "embed", "recaption"):
        tables_of(run, stage).remove(f"{part}.parquet")
    discard_marks(run, "select")


def discard_marks(run: Directory, first: str) -> None:
    """Have a stage of the whole run, and those after it, done anew."""
    for stage in _WHOLE[_WHOLE.index(first) :]:
        tables_of(run, stage).remove(f"{ALL}.parquet")


def which_done(run: Directory, wanted: Sequence[tuple[str, str, str]]) -> list[bool]:
    """Return `is_done` of each (stage, name, fingerprint), many asked at once: stores are slow."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda one: is_done(run, *one), wanted))


def is_done(run: Directory, stage: str, name: str, fingerprint: str) -> bool:
    """Return whether a part's table exists with the expected fingerprint."""
    return tables_of(run, stage).fingerprint(f"{name}.parquet") == fingerprint
