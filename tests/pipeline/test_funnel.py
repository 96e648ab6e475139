"""The funnel: every row and caption is somewhere, or the run does not end well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.funnel import check, count_rows, format_funnel
from pipeline.part import Part
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
            "caption_reasons": pa.array(
                [[None, "url"], ["image_dropped"], [], None], pa.list_(STRING)
            ).fill_null([]),
        }
    )
    tables_of(run, "select").write_table("00000.parquet", selected)
    scored = pa.table({"row": [0, 3, 5], "reason": pa.array([None, "no_caption", None], STRING)})
    tables_of(run, "score").write_table("00000.parquet", scored)
    return run


@pytest.fixture
def funnel(run: Directory) -> dict[str, Any]:
    parts = [Part(0, 0, 6, "a"), Part(1, 6, 4, "b")]
    return count_rows(run, parts, parts[:1])


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
        "captions": {"alt_texts": 3, "kept": 1, "dropped": {"image_dropped": 1, "url": 1}},
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


def test_an_empty_funnel_prints() -> None:
    nothing = {"alt_texts": 0, "kept": 0, "dropped": {}}
    empty = {"rows": 0, "fetched": 0, "failed": {}, "kept": 0, "dropped": {}, "captions": nothing}
    check(empty)
    assert "rows in" in format_funnel(empty)


def test_every_reason_has_a_known_class() -> None:
    assert {kind for kind, _ in FAILURES.values()} == {"transient", "permanent", "policy"}
