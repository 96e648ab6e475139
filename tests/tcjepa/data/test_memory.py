"""Memory of the trainer's process and its loader processes together stays flat over epochs."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tcjepa.data.batch import Batch
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
from tcjepa.noise import NoiseConfig
from tests.tcjepa.shards import image, write_shards

SAMPLES, BATCH, SIDE = 480, 16, 160
EPOCHS = int(os.environ.get("MEMORY_EPOCHS", "3"))  # after the one that warms up
STEPS = SAMPLES // BATCH
POOL = 24


def own_bytes(pid: int) -> int:
    """Return a process's heap and shared memory, what is shared counted in parts (PSS) [bytes].

    Pages of files are left out: the system drops them when it likes, and a library's share depends
    on who else on the machine maps it.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return 1024 * (int(kilobytes["Pss_Anon"]) + int(kilobytes["Pss_Shmem"]))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("memory")
    # Sizes around a halving and a few large ones, so that every way of decoding is taken.
    sizes = [(700, 500) if n % 8 == 0 else (150 + 10 * n, 200) for n in range(POOL)]
    images = [image(n, *size) for n, size in enumerate(sizes)]
    broken = images[1][: len(images[1]) // 2]
    write_shards(
        folder / "shards",
        SAMPLES,
        shard_size=60,
        size=lambda n: sizes[n % POOL],
        encode=lambda n: broken if n % 40 == 7 else images[n % POOL],
    )
    return DataConfig(
        shards=str(folder / "shards"), cache_dir=str(folder / "cache"), image_size=SIDE,
        workers=2, window=3, max_bad_share=1.0, noise=NoiseConfig(kind="derangement", rate=0.3),
    )  # fmt: skip


def readings(config: DataConfig, *, leak: bool) -> list[int]:
    """Return total memory [bytes] at the end of each epoch but the first.

    In a process of its own: what earlier tests left on this one's heap would hide a small growth.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_readings, config, leak).result()


def _readings(config: DataConfig, leak: bool) -> list[int]:
    index = ShardIndex.open(config)
    loader = make_loader(index, config, seed=0, global_batch=BATCH, steps=STEPS * (EPOCHS + 1))
    found: list[int] = []
    kept: list[Batch] = []
    for step, batch in enumerate(loader, start=1):
        # Memory that nobody touched would not count. `float` takes a large block for a moment, as a
        # trainer does: small ones left behind at each step would push the next one up the heap.
        assert batch.images.float().mean() > 0
        if leak:
            kept.append(batch)
        if step % STEPS == 0 and step > STEPS:
            workers = multiprocessing.active_children()
            pids = [os.getpid(), *(worker.pid for worker in workers if worker.pid)]
            if step < STEPS * (EPOCHS + 1):  # at the very end workers may have left
                assert len(pids) == 3
            found.append(sum(map(own_bytes, pids)))
    return found


def test_memory_is_flat_over_epochs(config: DataConfig) -> None:
    found = readings(config, leak=False)
    assert len(found) == EPOCHS
    assert max(found) <= 1.05 * min(found), found


def test_a_leak_would_be_seen(config: DataConfig) -> None:
    found = readings(config, leak=True)
    assert max(found) > 1.05 * min(found), found
