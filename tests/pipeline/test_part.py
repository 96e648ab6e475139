"""Parts: the source cut once, and never again while it stays the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.part import PARTS, cut, fingerprint, listed, retry_transient, with_generations
from pipeline.settings import ConfigError
from pipeline.stages.task import tables_of
from pipeline.storage import Directory


class Rows:
    """A source of given rows that counts how often it is read."""

    def __init__(self, count: int, mark: str = "a", **meta: Any) -> None:
        self.count, self.mark, self.meta, self.reads = count, mark, meta, 0

    def check(self) -> None:
        if not self.count:
            raise ConfigError("no rows")

    def fingerprint(self) -> str:
        return f"{self.mark}-{self.count}"

    def rows(self) -> Iterator[dict[str, Any]]:
        self.reads += 1
        for n in range(self.count):
            yield {
                "url": f"http://h/{self.mark}{n}",
                "captions": [f"caption {n}"] * (n % 3),
                "split": "train",
                "row_error": None if n % 4 else "bad_url",
                "number": n,
                **self.meta,
            }

    def fetch_url(self, url: str) -> str:
        return url

    def serve(self) -> AbstractContextManager[None]:
        return nullcontext()


def read_back(run: Directory) -> list[dict[str, Any]]:
    return [row for part in listed(run) for row in part.table(run).to_pylist()]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 40), size=st.integers(1, 15))
def test_parts_joined_are_the_source(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int
) -> None:
    run = Directory(tmp_path_factory.mktemp("run"))
    parts = cut(run, Rows(count), size)
    assert [part.rows for part in parts] == [
        min(size, count - start) for start in range(0, count, size)
    ]
    assert [part.first_row for part in parts] == list(range(0, count, size))
    assert [part.index for part in parts] == list(range(len(parts)))
    expected = [{"meta.number": row.pop("number"), **row} for row in map(dict, Rows(count).rows())]
    assert read_back(run) == expected
    assert listed(run) == parts


def test_a_part_depends_on_its_rows_only(tmp_path: Path) -> None:
    first = cut(Directory(tmp_path / "a"), Rows(10), 4)
    longer = cut(Directory(tmp_path / "b"), Rows(11), 4)
    assert first[:2] == longer[:2]
    assert first[2].fingerprint != longer[2].fingerprint
    assert [p.fingerprint for p in cut(Directory(tmp_path / "c"), Rows(10, "b"), 4)] != [
        p.fingerprint for p in first
    ]


def test_an_unchanged_source_is_not_read_again(tmp_path: Path) -> None:
    run, source = Directory(tmp_path), Rows(10)
    parts = cut(run, source, 3)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / PARTS).iterdir()}
    assert cut(run, source, 3) == parts
    assert source.reads == 1
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / PARTS).iterdir()}
    assert after == before


@pytest.mark.parametrize(("source", "size"), [(Rows(4, "b"), 3), (Rows(10), 5), (Rows(2), 3)])
def test_a_changed_source_or_size_is_cut_again_and_stale_parts_go(
    tmp_path: Path, source: Rows, size: int
) -> None:
    run = Directory(tmp_path)
    cut(run, Rows(10), 3)
    parts = cut(run, source, size)
    assert (run / PARTS).names("*.arrow") == [f"{part.name}.arrow" for part in parts]
    assert [row["url"] for row in read_back(run)] == [row["url"] for row in source.rows()]


def test_a_cut_that_fails_midway_never_passes_for_the_old_one(tmp_path: Path) -> None:
    """The old listing must not vouch for files that a broken re-cut has replaced."""
    run, old = Directory(tmp_path), Rows(10)
    cut(run, old, 3)

    class Breaking(Rows):
        def rows(self) -> Iterator[dict[str, Any]]:
            for number, row in enumerate(super().rows()):
                if number == 5:
                    raise OSError("disk gone")
                yield row

    with pytest.raises(OSError, match="disk gone"):
        cut(run, Breaking(10, "b"), 3)
    cut(run, old, 3)
    assert [row["url"] for row in read_back(run)] == [row["url"] for row in old.rows()]


_CUTTER = """
import sys
from pipeline.part import cut
from pipeline.stages.task import tables_of
from pipeline.storage import Directory
class Source:
    def fingerprint(self): return "x"
    def rows(self):
        for n in range(10):
            if n == 6:
                print("six", flush=True)
                sys.stdin.read()
            yield {"url": str(n), "captions": [], "split": "train", "row_error": None}
cut(Directory(sys.argv[1]), Source(), 2)
"""


def test_a_killed_cut_has_no_listing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _CUTTER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"six\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = Directory(tmp_path)
    assert len((run / PARTS).names("*.arrow")) == 3
    assert listed(run) == []
    assert len(cut(run, Rows(4), 2)) == 2
    assert (run / PARTS).names("*.arrow") == ["00000.arrow", "00001.arrow"]


def test_metadata_types_may_differ_between_parts(tmp_path: Path) -> None:
    class Mixed(Rows):
        def rows(self) -> Iterator[dict[str, Any]]:
            values = [1, 2, "three", 4.5, None, True, 2**62, 0.5]
            for row, value in zip(super().rows(), values, strict=True):
                yield {**row, "mixed": value}

    run = Directory(tmp_path)
    cut(run, Mixed(8), 2)
    assert [row["meta.mixed"] for row in read_back(run)] == [
        *(1, 2),
        *("three", "4.5"),
        *(None, True),
        *(str(2**62), "0.5"),  # as a float it would be another id
    ]


def test_the_fingerprint_depends_on_everything_it_is_given() -> None:
    base = fingerprint("download", 1, {"a": 1, "b": 2}, ["x"])
    assert base == fingerprint("download", 1, {"b": 2, "a": 1}, iter(["x"]))
    others = [
        fingerprint("filter", 1, {"a": 1, "b": 2}, ["x"]),
        fingerprint("download", 2, {"a": 1, "b": 2}, ["x"]),
        fingerprint("download", 1, {"a": 1, "b": 3}, ["x"]),
        fingerprint("download", 1, {"a": 1, "b": 2}, ["x", "y"]),
        fingerprint("download", 1, {"a": 1, "b": 2}, []),
    ]
    assert len({base, *others}) == 6


def test_a_list_that_grew_keeps_what_was_fetched_again(tmp_path: Path) -> None:
    run = Directory(str(tmp_path))
    parts = cut(run, Rows(20), 10)
    for part in parts:
        failed = pa.table({"failure": ["transient"] * part.rows})
        tables_of(run, "download").write_table(f"{part.name}.parquet", failed)
    raised = retry_transient(run, parts, {"00000"})
    assert [part.generation for part in raised] == [1, 0]
    grown = with_generations(run, cut(run, Rows(25), 10))
    assert [part.generation for part in grown] == [1, 0, 0]
    assert grown[:2] == raised
    changed = with_generations(run, cut(run, Rows(25, mark="b"), 10))
    assert [part.generation for part in changed] == [0, 0, 0]
