"""Remote shards over a local HTTP server, which ignores ranges, and over S3 if moto is here."""

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa.data import cache as cache_module
from tcjepa.data.cache import ShardCache, ShardUnavailableError
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader, worker_context
from tcjepa.data.reader import ShardReader
from tcjepa.noise import NoiseConfig
from tests.tcjepa.shards import write_shards

ROOM = 10**9


class Server:
    def __init__(self, folder: Path) -> None:
        self.gets: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()  # name -> how many GETs still fail

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                name = handler.path.rpartition("/")[2]
                self.gets[name] += 1
                if self.failures[name] > 0:
                    self.failures[name] -= 1
                    handler.send_error(503)
                    return
                super().do_GET()

            def log_message(handler, *args: Any) -> None:  # noqa: N805
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(cache_module.time, "sleep", lambda seconds: None)
    write_shards(tmp_path / "shards", 16, shard_size=4)
    server = Server(tmp_path / "shards")
    yield server
    server.close()


def config_of(server: Server, tmp_path: Path, **keys: Any) -> DataConfig:
    keys = {"cache_dir": str(tmp_path / "cache"), "image_size": 16, "workers": 0, **keys}
    return DataConfig(shards=server.url, **keys)


def cache_of(index: ShardIndex, limit: int = ROOM) -> ShardCache:
    cache = ShardReader(index, limit).cache
    assert cache is not None
    return cache


def test_remote_batches_equal_local_ones(server: Server, tmp_path: Path) -> None:
    remote = config_of(server, tmp_path, window=2, noise=NoiseConfig(kind="derangement", rate=0.5))
    local = remote.model_copy(update={"shards": str(tmp_path / "shards")})
    batches = [
        list(make_loader(ShardIndex.open(config), config, seed=1, global_batch=4, steps=8))
        for config in (remote, local)
    ]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images) and a.captions == b.captions
    assert all(server.gets[f"train-{n:05d}.tar"] for n in range(4))


def _fetch(index: ShardIndex, barrier: Any) -> None:
    barrier.wait()
    for shard in index.shards:
        cache_of(index).fetch(shard)


def test_one_process_of_a_node_fetches(server: Server, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(server, tmp_path))
    context = worker_context()
    barrier = context.Barrier(3)
    processes = [context.Process(target=_fetch, args=(index, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {server.gets[shard] for shard in index.shards} == {1}
    for shard in index.shards:
        assert cache_of(index).fetch(shard).read_bytes() == (
            tmp_path / "shards" / shard
        ).read_bytes()  # fmt: skip


def test_least_recently_used_goes_first(server: Server, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(server, tmp_path))
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


def test_passing_failures_are_retried(server: Server, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(server, tmp_path))
    server.failures[index.shards[0]] = 2
    with pytest.warns(UserWarning, match="trying again"):
        assert cache_of(index).fetch(index.shards[0]).exists()
    server.failures[index.shards[1]] = 100
    with pytest.raises(ShardUnavailableError, match="after 4 attempts"), pytest.warns():
        cache_of(index).fetch(index.shards[1])
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


@pytest.mark.filterwarnings("ignore:fetching")
def test_content_is_checked_against_the_manifest(server: Server, tmp_path: Path) -> None:
    index = ShardIndex.open(config_of(server, tmp_path))
    first, second, third, _ = (tmp_path / "shards" / shard for shard in index.shards)
    first.write_bytes(first.read_bytes()[:-512])
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    third.unlink()
    for path, message in ((first, "the manifest says"), (second, "SHA-256"), (third, "not in")):
        with pytest.raises(ShardUnavailableError, match=message):
            cache_of(index).fetch(path.name)
    (tmp_path / "shards" / "manifest.json").unlink()
    assert cache_of(index).fetch(first.name).exists()


def test_cache_too_small_for_two_windows_is_refused(server: Server, tmp_path: Path) -> None:
    config = config_of(server, tmp_path, cache_bytes=1000)
    loader = make_loader(ShardIndex.open(config), config, seed=0, global_batch=4, steps=1)
    with pytest.raises(ConfigError, match=r"data.cache_bytes = 1,000 cannot hold two windows"):
        next(iter(loader))


def test_missing_remote_index(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no index.parquet in http"):
        config = config_of(server, tmp_path)
        ShardIndex.open(config.model_copy(update={"shards": f"{server.url}/nowhere"}))


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        write_shards(tmp_path / "shards", 8, shard_size=4)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.put(f"{tmp_path}/shards/", "bucket/run/shards/", recursive=True)
        config = DataConfig(
            shards="s3://bucket/run/shards", cache_dir=str(tmp_path / "cache"), image_size=16,
            workers=0,
        )  # fmt: skip
        index = ShardIndex.open(config)
        reader = ShardReader(index, ROOM)
        assert reader.sample(5)["uid"] == index.entry(5).uid  # by range, nothing cached
        assert reader.cache is not None and reader.cache.cached(index.shards[1]) is None
        batches = list(make_loader(index, config, seed=0, global_batch=4, steps=2))
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(8))
    finally:
        server.stop()
