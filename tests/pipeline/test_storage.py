"""Files are whole or absent, wherever they lie and whenever the writer dies."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage import TEMPORARY_PREFIX, Directory


@pytest.fixture(params=["local", "brackets", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Directory]:
    if request.param == "memory":
        found = Directory(f"memory://{uuid.uuid4().hex}")
        yield found
        found.fs.store.clear()
    else:
        yield Directory(tmp_path / ("a [1]*b" if request.param == "brackets" else "plain"))


def test_files_are_written_listed_read_and_removed(directory: Directory) -> None:
    assert directory.names() == []
    assert not directory.exists("b.txt")
    directory.write_text("b.txt", "später")
    directory.write_bytes("a.bin", b"0123456789")
    (directory / "sub").write_json("c.json", {"b": [1, None], "a": "é"})
    assert directory.exists("b.txt")
    assert directory.names("*.txt") == ["b.txt"]
    assert [n for n in directory.names() if n != "sub"] == ["a.bin", "b.txt"]
    assert directory.read_bytes("b.txt").decode() == "später"
    assert directory.read_range("a.bin", 2, 5) == b"234"
    assert (directory / "sub").read_json("c.json") == {"b": [1, None], "a": "é"}
    directory.write_bytes("a.bin", b"new")
    assert directory.read_bytes("a.bin") == b"new"
    directory.remove("a.bin")
    directory.remove("a.bin")
    directory.remove("sub")
    assert directory.names() == ["b.txt"]
    with pytest.raises(FileNotFoundError):
        directory.read_bytes("a.bin")


def test_a_table_carries_its_fingerprint(directory: Directory) -> None:
    table = pa.table({"x": [1, 2], "y": ["a", None]}, metadata={"own": "kept"})
    directory.write_table("t.parquet", table, "mark")
    directory.write_table("none.parquet", table)
    assert directory.fingerprint("t.parquet") == "mark"
    assert directory.fingerprint("none.parquet") is None
    assert directory.fingerprint("absent.parquet") is None
    read = directory.read_table("t.parquet")
    assert read.to_pydict() == table.to_pydict()
    assert read.schema.metadata[b"own"] == b"kept"
    assert directory.read_table("t.parquet", ["y"]).column_names == ["y"]


def test_a_local_file_is_committed_where_the_directory_is(
    directory: Directory, tmp_path: Path
) -> None:
    temporary = directory.temporary("part.tar")
    temporary.write_bytes(b"tar")
    assert "part.tar" not in directory.names()
    directory.commit(temporary, "part.tar")
    assert directory.read_bytes("part.tar") == b"tar"
    assert not temporary.exists()


def test_temporary_names_are_invisible(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.temporary("x.parquet").write_bytes(b"half")
    assert len(list(tmp_path.iterdir())) == 1
    assert directory.names() == directory.names("*.parquet") == []


def test_a_directory_pickles_to_the_same_place(directory: Directory) -> None:
    directory.write_text("a", "1")
    copy = pickle.loads(pickle.dumps(directory))
    assert copy.url == directory.url
    assert copy.read_bytes("a") == b"1"
    assert copy.is_local == directory.is_local


def test_equal_values_are_equal_bytes(directory: Directory) -> None:
    directory.write_json("a", {"x": 1, "y": {"b": 2, "a": 3}})
    directory.write_json("b", {"y": {"a": 3, "b": 2}, "x": 1})
    assert directory.read_bytes("a") == directory.read_bytes("b")
    table = pa.table({"x": list(range(1000))})
    for name in ("a.parquet", "b.parquet"):
        directory.write_table(name, table, "mark")
    assert directory.read_bytes("a.parquet") == directory.read_bytes("b.parquet")
    with pytest.raises(ValueError, match="JSON"):
        directory.write_json("nan", {"x": float("nan")})
    assert not directory.exists("nan")


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(tmp_path)
    directory.write_text("a", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        directory.write_text("a", "new")
    assert directory.read_bytes("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


_WRITER = """
import os, sys
from pipeline.storage import Directory
fsync = os.fsync
def slow(descriptor):
    fsync(descriptor)
    print("half", flush=True)
    sys.stdin.read()        # killed here: written, not yet committed
os.fsync = slow
Directory(sys.argv[1]).write_bytes("shard.tar", b"x" * 100_000)
"""


def test_a_killed_writer_leaves_nothing_visible(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not directory.exists("shard.tar")
    assert directory.names() == []
    (litter,) = tmp_path.iterdir()
    assert litter.name.startswith(TEMPORARY_PREFIX)


_REWRITER = """
import sys
from pipeline.storage import Directory
directory = Directory(sys.argv[1])
number = 0
while True:
    number += 1
    directory.write_json("value.json", [number] * 5000)
"""


def test_a_file_that_is_rewritten_until_the_kill_is_always_whole(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", _REWRITER, str(tmp_path)])
    try:
        while not directory.exists("value.json"):
            assert process.poll() is None
            time.sleep(0.01)
        seen = {tuple(set(directory.read_json("value.json"))) for _ in range(30)}
    finally:
        process.kill()
        process.wait()
    assert all(len(values) == 1 for values in seen)
    assert len(set(json.loads((tmp_path / "value.json").read_text()))) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_table_has_no_fingerprint_and_never_raises(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A cut or damaged table never raises: its part is simply made again."""
    directory = Directory(tmp_path_factory.getbasetemp() / "damaged")
    directory.write_table("t.parquet", pa.table({"x": [1, 2, 3]}), "mark")
    content = directory.read_bytes("t.parquet")
    cut = data.draw(st.integers(0, len(content) - 1))
    directory.write_bytes("t.parquet", content[:cut])
    assert directory.fingerprint("t.parquet") is None
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= data.draw(st.integers(1, 255))
    directory.write_bytes("t.parquet", bytes(flipped))
    assert isinstance(directory.fingerprint("t.parquet"), str | None)


def test_a_damaged_column_name_has_no_fingerprint(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.write_table("t.parquet", pa.table({"column": [1]}), "mark")
    content = directory.read_bytes("t.parquet")
    directory.write_bytes("t.parquet", content.replace(b"column", b"\xf8olumn"))
    assert directory.fingerprint("t.parquet") is None


def test_scratch_of_a_worker_lies_where_dask_sweeps(tmp_path: Path) -> None:
    """In the folder of a process that may be killed at any time."""
    distributed = pytest.importorskip("distributed")

    def where() -> tuple[str, str]:
        temporary = Directory("memory://scratch").temporary("a.tar")
        return str(temporary.parent), distributed.get_worker().local_directory

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster, distributed.Client(cluster) as client:  # fmt: skip
        parent, own = client.submit(where, pure=False).result()
    assert parent == own and Path(own).is_relative_to(tmp_path)
    here = Directory("memory://scratch").temporary("a.tar").parent
    assert here == Path(tempfile.gettempdir())
