"""The plan of the shards: every sample once, in the order that a plain reference gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import ConfigError, build
from pipeline.stages.shuffle import PackConfig, plan, plan_shards, planned
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory


@dataclass(frozen=True)
class Packed:
    part: str
    row: int
    split: str
    size: int


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(["00000", "00001", "00002", "00003"]),
        st.sampled_from(["train", "test"]),
        st.integers(1, 3_000_000),
    ),
    max_size=40,
).map(lambda found: [Packed(p, n, s, b) for n, (p, s, b) in enumerate(sorted(found))])


def reference(kept: list[Packed], config: PackConfig) -> dict[str, list[Packed]]:
    """The same plan, sample by sample, everything in memory."""
    shards = {}
    for split in sorted({sample.split for sample in kept}):
        stream = list(_shuffled([s for s in kept if s.split == split], config))
        for number, shard in enumerate(_cut(stream, config.shard_mb * 1e6)):
            shards[f"{split}-{number:05d}"] = shard
    return shards


def _shuffled(samples: list[Packed], config: PackConfig) -> Iterator[Packed]:
    generator = np.random.Generator(np.random.Philox(key=config.seed))
    by_part: dict[str, list[Packed]] = {}
    for sample in samples:
        by_part.setdefault(sample.part, []).append(sample)
    order = [sorted(by_part)[i] for i in generator.permutation(len(by_part))]
    for start in range(0, len(order), config.window):
        window = [s for part in order[start : start + config.window] for s in by_part[part]]
        yield from (window[i] for i in generator.permutation(len(window)))


def _cut(samples: list[Packed], target: float) -> Iterator[list[Packed]]:
    shard: list[Packed] = []
    size = 0
    for sample in samples:
        if shard and size + sample.size > target:
            yield shard
            shard, size = [], 0
        shard.append(sample)
        size += sample.size
    if shard:
        yield shard


def table(samples: list[Packed]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array([s.row for s in samples], pa.int64()),
            "uid": pa.array([f"{s.row:032x}" for s in samples], pa.string()),
            "split": pa.array([s.split for s in samples], pa.string()),
            "size": pa.array([s.size for s in samples], pa.int64()),
        }
    )


def found(kept: list[Packed], config: PackConfig) -> dict[str, list[Packed]]:
    parts = sorted({sample.part for sample in kept} | {"00009"})
    shards = plan_shards(parts, lambda part: table([s for s in kept if s.part == part]), config)
    return {
        name: [Packed(r["part"], r["row"], r["split"], r["size"]) for r in samples.to_pylist()]
        for name, samples in shards
    }


@settings(max_examples=150, deadline=None)
@given(
    kept=SAMPLES,
    mb=st.sampled_from([0.5, 2, 5, 1000]),
    window=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_the_plan_is_the_reference(kept: list[Packed], mb: float, window: int, seed: int) -> None:
    config = PackConfig(shard_mb=mb, window=window, seed=seed)
    shards = found(kept, config)
    assert shards == reference(kept, config)
    packed = sorted((s for shard in shards.values() for s in shard), key=lambda s: s.row)
    assert packed == kept
    for split in ("test", "train"):
        own = [shard for name, shard in shards.items() if name.startswith(f"{split}-")]
        _check_windows([sample.part for shard in own for sample in shard], window)
        for shard, following in itertools.pairwise(own):
            # No shard is cut before it is full.
            assert sum(s.size for s in shard) + following[0].size > mb * 1e6


def _check_windows(stream: list[str], window: int) -> None:
    """Parts come in groups of `window`: the stream never returns to a group it has left."""
    groups: list[set[str]] = [set()]
    for part in stream:
        if part in groups[-1] or len(groups[-1]) < window:
            groups[-1].add(part)
        else:
            groups.append({part})
    seen = [part for group in groups for part in group]
    assert len(seen) == len(set(seen))


def test_the_seed_and_the_window_shuffle() -> None:
    kept = [Packed(f"{n // 10:05d}", n, "train", 1) for n in range(100)]
    first, second = (
        [s.row for shard in found(kept, PackConfig(seed=seed)).values() for s in shard]
        for seed in (0, 1)
    )
    assert first != second
    assert first != sorted(first)
    mixed = found(kept, PackConfig(shard_mb=10 / 1e6))["train-00000"]
    assert len({sample.part for sample in mixed}) > 1
    alone = found(kept, PackConfig(shard_mb=10 / 1e6, window=1))
    assert all(len({sample.part for sample in shard}) == 1 for shard in alone.values())


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        build(PackConfig, {"seed": -1})


def test_the_plan_takes_what_is_kept_and_leaves_no_stale_shard(tmp_path: Path) -> None:
    run = Directory(tmp_path)
    kept = [Packed("00000", n, "train", 10) for n in range(10)]
    fate = pa.array([None, "no_caption"] * 5, pa.string())
    tables_of(run, "choose").write_table("00000.parquet", table(kept).append_column("reason", fate))
    task = Task(run, "plan", "mark")
    plan(task, ["00000"], PackConfig(shard_mb=10 / 1e6))
    assert [shard.samples for shard in planned(run)] == [1] * 5
    plan(task, ["00000"], PackConfig())
    (shard,) = planned(run)
    assert (shard.name, shard.samples) == ("train-00000", 5)
    rows = tables_of(run, "plan").read_table("train-00000.parquet")["row"].to_pylist()
    assert sorted(rows) == [0, 2, 4, 6, 8]
    assert tables_of(run, "plan").names() == ["all.parquet", "train-00000.parquet"]
    tables_of(run, "choose").write_table(
        "00000.parquet",
        table(kept).append_column("reason", fate.slice(0, 10).take(pa.array([1, 0] * 5))),
    )
    plan(task, ["00000"], PackConfig())
    assert planned(run)[0].digest != shard.digest
