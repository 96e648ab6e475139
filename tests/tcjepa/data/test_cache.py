"""Remote shards over real loopback servers, HTTP and S3, in real processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.schema import MANIFEST_FILE
from pipeline.settings import ConfigError
from tcjepa.data import remote as remote_module
from tcjepa.data.cache import ShardCache
from tcjepa.data.config import DataConfig
from tcjepa.data.errors import ShardUnavailableError
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader, worker_context
from tcjepa.data.reader import ShardReader
from tcjepa.data.staging import sweep
from tcjepa.noise import NoiseConfig
from tests.tcjepa.data.stores import Store, s3_bucket
from tests.tcjepa.shards import caption, write_shards

ROOM = 10**9


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote_module, "_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "PIECE", 2048)
    write_shards(tmp_path / "shards", 16, shard_size=4)
    store = Store(tmp_path / "shards")
    yield store
    store.close()


def config_of(store: Store, tmp_path: Path, **keys: Any) -> DataConfig:
    keys = {"cache_dir": str(tmp_path / "cache"), "image_size": 16, "workers": 0, **keys}
    return DataConfig(shards=store.url, **keys)


def cache_of(index: ShardIndex, limit: int = ROOM) -> ShardCache:
    cache = ShardReader(index, limit).cache
    assert cache is not None
    return cache


@pytest.mark.parametrize("ranges", [True, False])
def test_remote_batches_equal_local_ones(store: Store, tmp_path: Path, ranges: bool) -> None:
    store.ranges = ranges
    remote = config_of(store, tmp_path, window=2, noise=NoiseConfig(kind="derangement", rate=0.5))
    local = remote.model_copy(update={"shards": str(tmp_path / "shards")})
    batches = [
        list(make_loader(ShardIndex.open(config), config, seed=1, global_batch=4, steps=8))
        for config in (remote, local)
    ]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images) and a.captions == b.captions
    assert all(store.count(f"train-{n:05d}.tar") for n in range(4))


def test_fetched_shards_cannot_be_hashed_against_no_manifest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "shards" / MANIFEST_FILE).unlink()
    with pytest.raises(ConfigError, match=r"data.verify=sha256: .* use data.verify=size"):
        ShardIndex.open(config_of(store, tmp_path, verify="sha256"))
    assert len(ShardIndex.open(config_of(store, tmp_path, verify="size"))) == 16


def _fetch(index: ShardIndex, barrier: Any) -> None:
    barrier.wait()
    for shard in index.shards:
        cache_of(index).fetch(shard)


def test_one_process_of_a_node_fetches(store: Store, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(store, tmp_path))
    store.gets.clear()
    context = worker_context()
    barrier = context.Barrier(3)
    processes = [context.Process(target=_fetch, args=(index, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {store.count(shard) for shard in index.shards} == {1}
    for shard in index.shards:
        assert cache_of(index).fetch(shard).read_bytes() == (
            tmp_path / "shards" / shard
        ).read_bytes()  # fmt: skip


def test_least_recently_used_goes_first(store: Store, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(store, tmp_path))
    size = (tmp_path / "shards" / index.shards[0]).stat().st_size
    cache = cache_of(index, limit=int(2.5 * size))
    a, b, c, _ = index.shards
    descriptor = ShardReader(index, int(2.5 * size))
    first = descriptor.image_and_sample(0)  # opens a
    cache.fetch(b)
    assert cache.cached(a) is not None  # used again: now b is the oldest
    cache.fetch(c)
    assert cache.cached(b) is None and cache.cached(a) is not None
    cache.fetch(b)
    cache.fetch(c)
    assert cache.cached(a) is None
    assert descriptor.image_and_sample(0) == first  # evicted, yet open files stay readable
    assert descriptor.image_and_sample(1)


def test_evicted_shards_leave_the_disk(store: Store, tmp_path: Path) -> None:
    """The system keeps what is open: a reader lets go of it when it opens the next one."""
    index = ShardIndex.open(config_of(store, tmp_path))
    size = (tmp_path / "shards" / index.shards[0]).stat().st_size
    reader = ShardReader(index, int(2.5 * size))
    deleted = []
    for row in range(len(index)):
        reader.image_and_sample(row)
        links = [os.fstat(descriptor).st_nlink for descriptor in reader._descriptors.values()]
        deleted.append(links.count(0))
    assert len(index.shards) == 4 and max(deleted) <= 1


def test_a_shard_that_is_evicted_while_it_is_looked_up_is_read_from_afar(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.open(config_of(store, tmp_path))
    cache = cache_of(index)
    shard = index.shards[1]
    path = cache.fetch(shard)
    expected = path.read_bytes()[100:300]

    def evicted(name: str) -> Path:
        assert name == shard
        path.unlink()
        return path

    monkeypatch.setattr(cache, "cached", evicted)
    assert cache.read_range(shard, 100, 300) == expected


def test_room_is_made_before_a_fetch(store: Store, tmp_path: Path) -> None:
    """The limit holds while a shard comes in, not only when it is there."""
    index = ShardIndex.open(config_of(store, tmp_path))
    size = (tmp_path / "shards" / index.shards[0]).stat().st_size
    cache = cache_of(index, limit=int(2.5 * size))
    most = 0
    store.hold = 0.02
    for shard in [*index.shards, *index.shards]:
        before = store.count(shard)
        cache.fetch(shard)
        assert store.count(shard) > before  # evicted by the three after it
        files = [p for p in (tmp_path / "cache" / "shards").glob("*/*") if p.suffix != ".lock"]
        most = max(most, sum(path.stat().st_size for path in files))
    assert most <= 2.5 * size


def test_equal_names_of_two_directories_do_not_meet(store: Store, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards" / "other", 8, shard_size=4, size=(20, 20))
    first = ShardIndex.open(config_of(store, tmp_path))
    second = ShardIndex.open(
        config_of(store, tmp_path).model_copy(update={"shards": f"{store.url}/other"})
    )
    for index, folder in ((first, "shards"), (second, "shards/other")):
        path = cache_of(index).fetch("train-00000.tar")
        assert path.read_bytes() == (tmp_path / folder / "train-00000.tar").read_bytes()


def test_passing_failures_are_retried(store: Store, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(store, tmp_path))
    store.faults[index.shards[0]] = 2
    with pytest.warns(UserWarning, match="trying again"):
        assert cache_of(index).fetch(index.shards[0]).exists()
    store.faults[index.shards[1]] = 1000
    with pytest.raises(ShardUnavailableError, match=r"tried 4 times.*503"), pytest.warns():
        cache_of(index).fetch(index.shards[1])
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.filterwarnings("ignore:reading")
def test_content_is_checked_against_the_manifest(store: Store, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(store, tmp_path))
    trusting = ShardIndex.open(config_of(store, tmp_path, verify="none"))
    first, second, third, fourth = (tmp_path / "shards" / shard for shard in index.shards)
    first.write_bytes(first.read_bytes()[:-512])
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    third.unlink()
    for path, message in ((first, "bytes"), (second, "SHA-256"), (third, "not in")):
        with pytest.raises(ShardUnavailableError, match=message):
            cache_of(index).fetch(path.name)
    store.fault, store.faults[fourth.name] = "garble", 1
    assert cache_of(index).fetch(fourth.name).read_bytes() == fourth.read_bytes()
    assert cache_of(trusting).fetch(first.name).exists()


@pytest.mark.filterwarnings("ignore:reading", "ignore:prefetch of")
def test_stalled_shard_stops_the_run(store: Store, tmp_path: Path) -> None:
    """In worker processes: the trainer gets the error itself, not a traceback of a traceback."""
    config = config_of(store, tmp_path, timeout_s=0.3, workers=1)
    loader = make_loader(ShardIndex.open(config), config, seed=0, global_batch=4, steps=4)
    store.fault = "stall"
    store.faults.update(dict.fromkeys((f"train-{n:05d}.tar" for n in range(4)), 10**6))
    with pytest.raises(ShardUnavailableError, match=r"^cannot read train-.*timeout_s = 0.3 s$"):
        list(loader)


_KILLED = """
import sys
from tcjepa.data import remote
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
remote.PIECE = 2048
index = ShardIndex.open(DataConfig.model_validate_json(sys.argv[1]))
ShardReader(index, 10**9).cache.fetch(index.shards[0])
"""


def test_killed_fetch_leaves_nothing_to_read(store: Store, tmp_path: Path) -> None:
    """Killed with some pieces written and others under way."""
    config = config_of(store, tmp_path, timeout_s=600)
    index = ShardIndex.open(config)
    shard = index.shards[0]
    store.fault, store.faults[shard], store.good[shard] = "stall", 1000, 4
    process = subprocess.Popen([sys.executable, "-c", _KILLED, config.model_dump_json()])
    while store.count(shard) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    (part,) = (tmp_path / "cache" / "shards").rglob(".tmp-*")
    sweep(part.parent)
    assert part.exists()  # its writer lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.exists() and cache_of(index).cached(shard) is None
    store.faults.clear()
    expected = (tmp_path / "shards" / shard).read_bytes()
    assert cache_of(index).fetch(shard).read_bytes() == expected
    assert not part.exists()


def test_cache_too_small_for_two_windows_is_refused(store: Store, tmp_path: Path) -> None:
    config = config_of(store, tmp_path, cache_bytes=1000)
    loader = make_loader(ShardIndex.open(config), config, seed=0, global_batch=4, steps=1)
    with pytest.raises(ConfigError, match=r"data.cache_bytes = 1,000 cannot hold two windows"):
        next(iter(loader))


def test_shards_of_which_little_is_selected_take_their_whole_room(
    store: Store, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "shards")
    write_shards(
        tmp_path / "shards", 64, shard_size=16,
        captions=lambda n: [caption("a dog")] * (2 if n % 16 == 0 else 1),
    )  # fmt: skip
    config = config_of(store, tmp_path, filter="n_captions >= 2", window=2)
    index = ShardIndex.open(config)
    sizes = [(tmp_path / "shards" / shard).stat().st_size for shard in index.shards]
    assert len(sizes) == 4 and index.shard_ends.sum() < sum(sizes) / 2
    for room, fits in ((sum(sizes), True), (sum(sizes) - 1, False)):
        own = config.model_copy(update={"cache_bytes": room})
        batches = iter(make_loader(index, own, seed=0, global_batch=1, steps=1))
        if fits:
            next(batches)
        else:
            with pytest.raises(ConfigError, match="cannot hold two windows"):
                next(batches)


def test_missing_remote_index(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no index.parquet in http"):
        config = config_of(store, tmp_path)
        ShardIndex.open(config.model_copy(update={"shards": f"{store.url}/nowhere"}))


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "PIECE", 2048)
    write_shards(tmp_path / "shards", 8, shard_size=4)
    with s3_bucket(monkeypatch, tmp_path / "shards") as url:
        config = DataConfig(shards=url, cache_dir=str(tmp_path / "cache"), image_size=16, workers=0)
        index = ShardIndex.open(config)
        reader = ShardReader(index, ROOM)
        assert reader.sample(5)["uid"] == index.entry(5).uid  # by range, nothing cached
        assert reader.cache is not None and reader.cache.cached(index.shards[1]) is None
        batches = list(make_loader(index, config, seed=0, global_batch=4, steps=2))
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(8))
        for shard in index.shards:
            assert (
                cache_of(index).fetch(shard).read_bytes()
                == (tmp_path / "shards" / shard).read_bytes()
            )
