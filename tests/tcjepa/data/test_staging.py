"""Files of the cache folder under kills and full disks, with real processes."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcjepa.data.config import DataConfig
from tcjepa.data.staging import staged, sweep, temporary
from tests.tcjepa.data.stores import Store
from tests.tcjepa.shards import write_shards


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with staged(target) as file:
        file.write(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    with pytest.raises(ValueError), staged(target) as file:
        file.write(b"half")
        raise ValueError
    assert target.read_bytes() == b"content"
    with temporary(tmp_path) as file:
        assert Path(file.name).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "staging.lock"}


_WRITES = """
import sys, time
from pathlib import Path
from tcjepa.data.staging import staged
with staged(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(1000)
"""


def test_only_dead_writers_are_swept(tmp_path: Path) -> None:
    target = tmp_path / "file"
    process = subprocess.Popen([sys.executable, "-c", _WRITES, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    sweep(tmp_path)
    (part,) = tmp_path.glob(".tmp-*")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert part.exists() and not target.exists()
    sweep(tmp_path)
    assert not part.exists()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    write_shards(tmp_path / "shards", 8, shard_size=4)
    store = Store(tmp_path / "shards")
    yield store
    store.close()


_FETCHES = """
import sys, traceback
from tcjepa.data.config import DataConfig
from tcjepa.data.errors import CacheFullError
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
try:
    index = ShardIndex.open(DataConfig.model_validate_json(sys.argv[1]))
    ShardReader(index, 10**9).cache.fetch(index.shards[0])
except CacheFullError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("room", "name"), [(9000, "train-00000.tar"), (100, "index.parquet")])
def test_full_disk(store: Store, tmp_path: Path, room: int, name: str) -> None:
    """A limit on the size of files stands for a full disk; writes fail in the same place."""
    config = DataConfig(shards=store.url, cache_dir=str(tmp_path / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", _FETCHES, config.model_dump_json()],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert f"no room for {name} in {tmp_path}/cache" in done.stderr
    assert "lower data.cache_bytes, or name another folder with data.cache_dir" in done.stderr
    assert not list((tmp_path / "cache").rglob(".tmp-*"))
