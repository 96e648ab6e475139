import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.schema import INDEX_FILE, SchemaError
from pipeline.settings import ConfigError
from tcjepa.data import index as index_module
from tcjepa.data.config import DataConfig, cache_folder
from tcjepa.data.index import ShardIndex
from tests.tcjepa.shards import caption, write_shards


def config_of(tmp_path: Path, **keys: Any) -> DataConfig:
    return DataConfig(shards=str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"), **keys)


@pytest.fixture
def samples(tmp_path: Path) -> list[Any]:
    return write_shards(
        tmp_path / "shards",
        30,
        captions=lambda n: [caption("words", quality=n / 30)] * (n % 3),
        split=lambda n: "train" if n < 22 else "val",
        meta=lambda n: {"label": n % 4},
    )


def test_rows_match_the_shards(tmp_path: Path, samples: list[Any]) -> None:
    index = ShardIndex.open(config_of(tmp_path))
    assert len(index) == 22
    assert index.shards == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    assert index.shard_sizes.tolist() == [8, 8, 6]
    assert [index.entry(row).uid for row in range(22)] == [s["uid"] for s in samples[:22]]
    assert index.caption_counts().tolist() == [n % 3 for n in range(22)]
    assert index.uid_bits().tolist() == [int(s["uid"][:16], 16) for s in samples[:22]]
    with pytest.raises(IndexError):
        index.entry(22)


def test_chunk_borders_change_nothing(
    tmp_path: Path, samples: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ShardIndex.open(config_of(tmp_path))
    monkeypatch.setattr(index_module, "_CHUNK", 5)
    config = config_of(tmp_path).model_copy(update={"cache_dir": str(tmp_path / "other")})
    chunked = ShardIndex.open(config)
    assert len(chunked._batches) > 1
    assert [chunked.entry(row) for row in range(22)] == [whole.entry(row) for row in range(22)]
    assert chunked.shard_sizes.tolist() == whole.shard_sizes.tolist()
    assert chunked.uid_bits().tolist() == whole.uid_bits().tolist()
    assert chunked.fingerprint == whole.fingerprint


def test_filter(tmp_path: Path, samples: list[Any]) -> None:
    index = ShardIndex.open(config_of(tmp_path, filter="n_captions >= 1 and meta.label in [0, 1]"))
    kept = [n for n in range(22) if n % 3 >= 1 and n % 4 in (0, 1)]
    assert [index.entry(row).uid for row in range(len(index))] == [samples[n]["uid"] for n in kept]


def test_fingerprint_names_the_selection(tmp_path: Path, samples: list[Any]) -> None:
    def fingerprint(**keys: Any) -> str:
        return ShardIndex.open(config_of(tmp_path, **keys)).fingerprint

    base = fingerprint()
    assert base == fingerprint(image_size=32, window=1)
    assert len({base, fingerprint(split="val"), fingerprint(filter="n_captions > 0")}) == 3
    assert fingerprint(filter="n_captions>0") == fingerprint(filter="(n_captions  >  0)")
    path = tmp_path / "shards" / INDEX_FILE
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 20), path)
    assert fingerprint() != base


def test_empty_selection_says_which_clause_emptied_it(tmp_path: Path, samples: list[Any]) -> None:
    with pytest.raises(ConfigError) as error:
        ShardIndex.open(config_of(tmp_path, filter="n_captions >= 2 and meta.label > 9"))
    message = str(error.value)
    assert message.startswith("data.split and data.filter leave no row of the 30 in ")
    assert "split == 'train': 22 rows by itself, 22 left" in message
    assert "n_captions >= 2: 10 rows by itself, 7 left" in message
    assert "meta.label > 9: 0 rows by itself, 0 left" in message
    assert "  split: train (22), val (8)" in message
    assert "  n_captions: 0 to 2" in message and "  meta.label: 0 to 3" in message
    with pytest.raises(ConfigError) as error:
        ShardIndex.open(config_of(tmp_path, split="test"))
    message = str(error.value)
    assert message.startswith("data.split leaves no row") and "train (22), val (8)" in message


def test_empty_selection_names_values_and_nulls(tmp_path: Path) -> None:
    write_shards(
        tmp_path / "shards",
        12,
        captions=lambda n: [caption("words", quality=None if n % 3 else 0.25 + n / 100)],
        meta=lambda n: {"host": f"host{n}"},
    )
    with pytest.raises(ConfigError) as error:
        ShardIndex.open(
            config_of(
                tmp_path, filter="quality_best > 0.9 and (meta.host == 'a' or not split == 'x')"
            )
        )
    message = str(error.value)
    assert "  quality_best: 0.25 to 0.34, null (8)" in message
    assert "host0 (1)" in message and "4 other values" in message


def test_index_without_rows(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 4)
    path = tmp_path / "shards" / INDEX_FILE
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ConfigError, match=r"data.shards: the index of .* has no rows at all"):
        ShardIndex.open(config_of(tmp_path))


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no index.parquet in .*python -m pipeline shards"):
        ShardIndex.open(config_of(tmp_path))


def test_pickles_as_a_path(tmp_path: Path, samples: list[Any]) -> None:
    index = ShardIndex.open(config_of(tmp_path))
    data = pickle.dumps(index)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert copy.fingerprint == index.fingerprint and copy.table.equals(index.table)


_OPENS = """
import sys, time
from tcjepa.data import index
from tcjepa.data.config import DataConfig
write = index._write_selection
def slowly(*given):
    print("writes")
    time.sleep(0.5)  # whoever does not wait for us comes here as well
    write(*given)
index._write_selection = slowly
print("ready", flush=True)
sys.stdin.readline()
print(len(index.ShardIndex.open(DataConfig.model_validate_json(sys.argv[1]))))
"""


def test_one_process_of_a_node_writes_the_mapped_index(tmp_path: Path, samples: list[Any]) -> None:
    command = [sys.executable, "-c", _OPENS, config_of(tmp_path).model_dump_json()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert sorted(said) == [["22"], ["22"], ["writes", "22"]]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("shard", "../../etc/passwd", "plain file name"), ("uid", "0" * 31 + "G", "hex digits")],
)
def test_hostile_index_is_refused(
    tmp_path: Path, samples: list[Any], column: str, value: str, message: str
) -> None:
    path = tmp_path / "shards" / INDEX_FILE
    table = pq.read_table(path)
    place = table.column_names.index(column)
    values = [value, *table[column].to_pylist()[1:]]
    pq.write_table(table.set_column(place, table.schema.field(column), [values]), path)
    with pytest.raises(SchemaError, match=message):
        ShardIndex.open(config_of(tmp_path))
    assert not list((tmp_path / "cache").glob("*.arrow"))


def test_default_cache_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = cache_folder(DataConfig(shards="x"))
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="cache_dir"):
        cache_folder(DataConfig(shards="x"))
