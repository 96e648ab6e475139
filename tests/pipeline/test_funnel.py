"""The funnel: every row and caption is somewhere, or the run does not end well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.funnel import FunnelCount, check, count_so_far, format_funnel
from pipeline.stages.failures import FAILURES
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

STRING = pa.string()


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    """A run of two parts: the first with six rows, the second failed as a whole."""
    run = Directory(tmp_path)
    fates = [None, "not_found", None, None, "timeout", None]
    tables_of(run, "download").write_table(
        "00000.parquet", pa.table({"reason": pa.array(fates, STRING)})
    )
    selected = pa.table(
        {
            "row": [0, 2, 3, 5],
            "reason": pa.array([None, "too_small", None, None], STRING),
            "caption_reasons": [[None, "url"], ["image_dropped"], [None], [None, None]],
        }
    )
    tables_of(run, "select").write_table("00000.parquet", selected)
    captions = [["alt", "x:short"], ["alt", "x:short", "x:detail"], ["alt", "alt", "x:short"]]
    scored = pa.table(
        {"row": [0, 3, 5], "captions": [[{"source": s} for s in row] for row in captions]}
    )
    tables_of(run, "score").write_table("00000.parquet", scored)
    chosen = pa.table(
        {
            "row": [0, 3, 5],
            "reason": pa.array([None, "no_caption", None], STRING),
            "caption_reasons": pa.array(
                [[None, "low"], ["low", None, None], [None, "low", None]], pa.list_(STRING)
            ),
        }
    )
    tables_of(run, "choose").write_table("00000.parquet", chosen)
    written = [["a", "b", "c"], ["d"], ["e", "f"]]
    tables_of(run, "recaption").write_table("00000.parquet", pa.table({"captions": written}))
    return run


@pytest.fixture
def funnel(run: Directory) -> dict[str, Any]:
    count = FunnelCount()
    count.add_part(run, "00000")
    count.add_failed_part(4)
    return count.result()


def test_rows_are_counted_by_what_became_of_them(funnel: dict[str, Any]) -> None:
    check(funnel)
    assert funnel == {
        "rows": 10,
        "fetched": 4,
        "failed": {
            "transient": {"part_failed": 4, "timeout": 1},
            "permanent": {"not_found": 1},
            "policy": {},
        },
        "kept": 2,
        "dropped": {"no_caption": 1, "too_small": 1},
        "captions": {
            "alt_texts": 6,
            "kept": 2,
            "dropped": {"image_dropped": 1, "low": 2, "url": 1},
        },
        # Six were written; two images of three that were captioned have four of them.
        "new_captions": {
            "written": 6,
            "kept": 1,
            "dropped": {"image_dropped": 2, "low": 1, "not_needed": 2},
        },
    }


def _one_more(*path: str) -> Callable[[dict[str, Any]], None]:
    def tamper(funnel: dict[str, Any]) -> None:
        for step in path[:-1]:
            funnel = funnel[step]
        funnel[path[-1]] += 1

    return tamper


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_one_more("rows"), "rows are missing"),
        (_one_more("failed", "permanent", "not_found"), "rows are missing"),
        (_one_more("fetched"), "rows are missing"),
        (_one_more("kept"), "images are missing"),
        (_one_more("dropped", "too_small"), "images are missing"),
        (_one_more("captions", "alt_texts"), "captions are missing"),
        (_one_more("captions", "kept"), "captions are missing"),
        (_one_more("captions", "dropped", "url"), "captions are missing"),
        (_one_more("new_captions", "kept"), "captions are missing"),
    ],
)
def test_a_count_that_is_off_by_one_is_found(
    funnel: dict[str, Any], tamper: Callable[[dict[str, Any]], None], words: str
) -> None:
    tampered = copy.deepcopy(funnel)
    tamper(tampered)
    with pytest.raises(AssertionError, match=words):
        check(tampered)


def test_the_printed_funnel_names_every_reason(funnel: dict[str, Any]) -> None:
    lines = format_funnel(funnel).splitlines()
    assert lines[0].split() == ["rows", "in", "10", "100.0%"]
    assert any("failed, not_found (permanent)" in line and "10.0%" in line for line in lines)
    assert any("failed, part_failed (transient)" in line and "40.0%" in line for line in lines)
    assert any("dropped, no_caption" in line for line in lines)
    assert any("dropped, image_dropped" in line for line in lines)
    assert len({len(line) for line in lines if line.endswith("%")}) == 1, "columns don't line up"


def test_parts_that_failed_count_as_failed_whatever_tables_they_have(run: Directory) -> None:
    parts = [{"index": n, "first_row": 6 * n, "rows": 6, "fingerprint": ""} for n in range(2)]
    (run / "parts").write_json("parts.json", {"source": "", "parts": parts})
    download = tables_of(run, "download")
    download.write_table("00001.parquet", download.read_table("00000.parquet"))
    assert count_so_far(run, "download")["fetched"] == 8
    found = count_so_far(run, "download", {"00001"})
    assert (found["rows"], found["fetched"]) == (12, 4)
    assert found["failed"]["transient"]["part_failed"] == 6


def test_an_empty_funnel_prints() -> None:
    nothing = {"alt_texts": 0, "kept": 0, "dropped": {}}
    empty = {"rows": 0, "fetched": 0, "failed": {}, "kept": 0, "dropped": {}, "captions": nothing}
    empty["new_captions"] = {"written": 0, "kept": 0, "dropped": {}}
    check(empty)
    assert "rows in" in format_funnel(empty)


def test_every_reason_has_a_known_class() -> None:
    assert {kind for kind, _ in FAILURES.values()} == {"transient", "permanent", "policy"}
