"""Write the final shards that held forgotten images again, in the same order, without them."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.fingerprints import Fingerprints
from pipeline.stages import pack, shuffle
from pipeline.stages.shuffle import PlannedShard, planned
from pipeline.stages.task import ALL, Task, is_done, tables_of
from pipeline.storage import Directory


def cut_plan(run: Directory, uids: Collection[str]) -> None:
    """Take the images out of the plan; its mark and order stay."""
    gone = pa.array(sorted(uids), pa.string())
    tables = tables_of(run, "plan")
    mark = tables.fingerprint(f"{ALL}.parquet")
    shards: list[PlannedShard] = []
    for shard in planned(run):
        name = f"{shard.name}.parquet"
        samples = tables.read_table(name)
        kept = samples.filter(pc.invert(pc.is_in(samples["uid"], value_set=gone)))
        if len(kept) < len(samples):
            tables.write_table(name, kept, mark)
        if len(kept):
            shards.append(shuffle.planned_shard(shard.name, kept))
    tables.write_table(f"{ALL}.parquet", shuffle.listing(shards), mark)


def pack_again(run: Directory, marks: Fingerprints) -> int:
    """Pack every shard whose plan has changed; return how many those are."""
    packed = 0
    pack.drop_unplanned(run, {shard.name for shard in planned(run)})
    for shard in planned(run):
        mark = marks.pack(shard)
        if not is_done(run, "pack", shard.name, mark):
            pack.pack(Task(run, "pack", mark), shard.name)
            packed += 1
    return packed
