"""Stage `plan`: which kept sample goes to which shard, and in which order.

A windowed global shuffle: parts are permuted and grouped into windows, samples permuted inside a
window, so that a shard mixes samples of up to `window` parts and reads from no more. One window is
in memory at a time, so the plan of a run of any size fits a worker.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.settings import Settings
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 1
STAGE = "plan"

_COLUMNS = ["row", "uid", "split", "size"]


class PackConfig(Settings):
    """How kept samples become shards."""

    shard_mb: float = Field(256, gt=0, description="target size of a shard's images [MB]")
    window: int = Field(
        64, ge=1, description="parts whose samples are shuffled together [parts]; bounds open files"
    )
    seed: int = Field(0, ge=0, description="of the shuffle")
    min_captions: int = Field(
        1, ge=0, description="images with fewer captions are dropped as `no_caption`; 0 keeps all"
    )


@dataclass(frozen=True)
class PlannedShard:
    """A shard to write: its name, how many samples it has, and a digest of which they are."""

    name: str
    samples: int
    digest: str


def plan(task: Task, parts: list[str], config: PackConfig) -> StageReport:
    """Write a table per shard with the part, row, uid and split of its samples, in order.

    The mark `plan/all` lists the shards and comes last. Tables of shards that an earlier plan had
    and this one has not are removed.
    """

    def kept(part: str) -> pa.Table:
        table = tables_of(task.run, "choose").read_table(f"{part}.parquet", [*_COLUMNS, "reason"])
        return table.filter(pc.is_null(table["reason"])).select(_COLUMNS)

    shards = []
    for name, samples in plan_shards(parts, kept, config):
        task.write(name, samples)
        shards.append(planned_shard(name, samples))
    _remove_stale(task, shards)
    task.write(ALL, listing(shards))
    return StageReport(
        counts={"shards": len(shards), "samples": sum(shard.samples for shard in shards)}
    )


def planned_shard(name: str, samples: pa.Table) -> PlannedShard:
    """Return a shard's entry in the plan."""
    return PlannedShard(name, samples.num_rows, _digest(samples))


def listing(shards: Sequence[PlannedShard]) -> pa.Table:
    """Return the table of the plan's mark."""
    columns = {
        "name": pa.array([shard.name for shard in shards], pa.string()),
        "samples": pa.array([shard.samples for shard in shards], pa.int64()),
        "digest": pa.array([shard.digest for shard in shards], pa.string()),
    }
    return pa.table(columns)


def planned(run: Directory) -> list[PlannedShard]:
    """Return the shards of a run's plan, in order."""
    table = tables_of(run, STAGE).read_table(f"{ALL}.parquet")
    return [PlannedShard(**row) for row in table.to_pylist()]


def plan_shards(
    parts: Iterable[str], kept: Callable[[str], pa.Table], config: PackConfig
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each shard's name and samples (columns part, row, uid, split, size), split by split.

    `kept` reads a part's kept samples: row, uid, split, size [bytes]. A shard is cut before the
    sample that would exceed the target size; a larger sample has a shard of its own. A pure
    function of its arguments.
    """
    by_split: dict[str, list[str]] = {}
    for part in parts:
        for split in sorted(Counter(kept(part)["split"].to_pylist())):
            by_split.setdefault(split, []).append(part)
    for split in sorted(by_split):
        windows = _windows(split, sorted(by_split[split]), kept, config)
        for number, samples in enumerate(_cut(windows, config.shard_mb * 1e6)):
            yield f"{split}-{number:05d}", samples


def _windows(
    split: str, parts: list[str], kept: Callable[[str], pa.Table], config: PackConfig
) -> Iterator[pa.Table]:
    generator = np.random.Generator(np.random.Philox(key=config.seed))
    order = [parts[place] for place in generator.permutation(len(parts))]
    for start in range(0, len(order), config.window):
        tables = []
        for part in order[start : start + config.window]:
            samples = kept(part)
            own = samples.filter(pc.equal(samples["split"], split))
            tables.append(own.add_column(0, "part", pa.array([part] * len(own), pa.string())))
        window = pa.concat_tables(tables)
        yield window.take(pa.array(generator.permutation(len(window))))


def _cut(windows: Iterator[pa.Table], target: float) -> Iterator[pa.Table]:
    """Yield the stream of samples cut into shards; a shard may span windows."""
    rest: pa.Table | None = None
    for window in windows:
        stream = window if rest is None else pa.concat_tables([rest, window])
        ends = np.cumsum(np.asarray(stream["size"].to_numpy(), dtype=np.int64))
        start = 0
        while (end := _shard_end(ends, start, target)) < len(stream):
            yield stream.slice(start, end - start)
            start = end
        rest = stream.slice(start)
    if rest is not None and len(rest):
        yield rest


def _shard_end(ends: npt.NDArray[np.int64], start: int, target: float) -> int:
    """Return where the shard that begins at `start` ends, given cumulative sizes."""
    before = int(ends[start - 1]) if start else 0
    return max(start + 1, int(np.searchsorted(ends, before + target, side="right")))


def _digest(samples: pa.Table) -> str:
    digest = hashlib.sha256()
    for uid, row in zip(samples["uid"].to_pylist(), samples["row"].to_pylist(), strict=True):
        digest.update(f"{uid} {row}\n".encode())
    return digest.hexdigest()


def _remove_stale(task: Task, shards: list[PlannedShard]) -> None:
    directory = tables_of(task.run, task.stage)
    wanted = {f"{shard.name}.parquet" for shard in shards} | {f"{ALL}.parquet"}
    for stale in set(directory.names("*.parquet")) - wanted:
        directory.remove(stale)
