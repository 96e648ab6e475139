"""Write the final shards that held forgotten images again, in the same order, without them."""

from __future__ import annotations

import tarfile
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.fingerprints import Fingerprints
from pipeline.schema import IMAGE_EXTENSIONS
from pipeline.stages import pack, shuffle
from pipeline.stages.images import RAW
from pipeline.stages.shuffle import PlannedShard, planned
from pipeline.stages.task import ALL, SHARDS, Task, is_done, tables_of
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
    """Pack every shard whose plan has changed; return how many those are.

    Where a user has deleted the run's raw tars the images come from the shard as it is.
    """
    packed = 0
    pack.drop_unplanned(run, {shard.name for shard in planned(run)})
    for shard in planned(run):
        mark = marks.pack(shard)
        if not is_done(run, "pack", shard.name, mark):
            given = None if _has_raw(run, shard.name) else _packed(run, shard.name)
            pack.pack(Task(run, "pack", mark), shard.name, given)
            packed += 1
    return packed


def _has_raw(run: Directory, shard: str) -> bool:
    """Return whether the stored images of a shard's plan are where the tables say."""
    planned = tables_of(run, "plan").read_table(f"{shard}.parquet", ["part", "row"])
    tars: set[str] = set()
    for part in pc.unique(planned["part"]).to_pylist():
        rows = planned.filter(pc.equal(planned["part"], part))["row"].combine_chunks()
        fetched = tables_of(run, "download").read_table(f"{part}.parquet", ["row", "raw"])
        tars.update(fetched.filter(pc.is_in(fetched["row"], value_set=rows))["raw"].to_pylist())
    return {tar for tar in tars if "/" not in tar} <= set((run / RAW).names("*.tar"))


def _packed(run: Directory, shard: str) -> dict[str, bytes]:
    """Return the images (encoded) of a shard by uid."""
    shards, images = run / SHARDS, {}
    with (
        shards.fs.open(shards.path(f"{shard}.tar"), "rb") as file,
        tarfile.open(fileobj=file) as tar,
    ):
        for member in tar:
            uid, _, extension = member.name.partition(".")
            if extension in IMAGE_EXTENSIONS:
                stored = tar.extractfile(member)
                assert stored is not None
                images[uid] = stored.read()
    return images
