import json
import pickle
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tcjepa.data import reader as reader_module
from tcjepa.data.cache import ShardUnavailableError
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import SampleError
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
from tests.tcjepa.shards import write_shards


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    write_shards(tmp_path / "shards", 20, shard_size=4)
    return open_index(tmp_path)


def open_index(tmp_path: Path, **keys: Any) -> ShardIndex:
    cache = str(tmp_path / "cache")
    return ShardIndex.open(DataConfig(shards=str(tmp_path / "shards"), cache_dir=cache, **keys))


def test_ranges_agree_with_tarfile(index: ShardIndex, tmp_path: Path) -> None:
    reader = ShardReader(index, 1)
    for row in range(len(index)):
        entry = index.entry(row)
        with tarfile.open(tmp_path / "shards" / entry.shard) as tar:
            image = tar.extractfile(f"{entry.uid}.jpg")
            text = tar.extractfile(f"{entry.uid}.json")
            assert image is not None and text is not None
            data, image_format, sample = reader.image_and_sample(row)
            assert data == image.read() and image_format == "jpg"
            assert sample == json.load(text) == reader.sample(row)


def test_one_read_or_two_give_the_same(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    together = [ShardReader(index, 1).image_and_sample(row) for row in range(20)]
    monkeypatch.setattr(reader_module, "_GAP", -1)
    assert [ShardReader(index, 1).image_and_sample(row) for row in range(20)] == together


def test_descriptors_are_bounded(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_DESCRIPTORS", 2)
    reader = ShardReader(index, 1)
    for row in [*range(20), *range(20)]:
        reader.sample(row)
    assert len(open_shards(index)) == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.sample(3) == reader.sample(3)
    reader.close()
    assert len(open_shards(index)) == 1  # the copy's


def open_shards(index: ShardIndex) -> list[str]:
    """Return the shards of an index that this process has open, once for each descriptor."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor is closed by now
            found.append(link.readlink())
    folder = Path(index.directory.url)
    return sorted(path.name for path in found if path.parent == folder)


def test_broken_samples(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 20, shard_size=4)
    index = open_index(tmp_path, verify="none")
    reader = ShardReader(index, 1)
    entry, other = index.entry(1), index.entry(2)
    path = tmp_path / "shards" / entry.shard
    data = bytearray(path.read_bytes())
    start = entry.json_offset
    data[start : start + 4] = b"\xff\xff\xff\xff"
    place = other.json_offset + data[other.json_offset :].index(other.uid.encode())
    data[place : place + 4] = b"0000" if other.uid[:4] != "0000" else b"1111"
    last = index.entry(3)
    path.write_bytes(data[: last.json_offset + 1])
    assert reader.image_and_sample(0)
    for row, message in ((1, "is broken"), (2, "another sample's"), (3, "ends before byte")):
        with pytest.raises(SampleError, match=message):
            reader.image_and_sample(row)


def test_missing_shard_stops(index: ShardIndex, tmp_path: Path) -> None:
    (tmp_path / "shards" / index.shards[0]).unlink()
    with pytest.raises(ShardUnavailableError, match="in the index but not in"):
        ShardReader(index, 1).sample(0)
