"""Time, throughput and time left from `events.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import charts
from pipeline.report.activity import merged, read_activity, seconds_left
from pipeline.storage import Directory


def event(stage: str, part: str, time: float, seconds: float, **other: Any) -> str:
    base = {"bytes": 0, "counts": {}, "figures": {}, "error": None}
    line = {"time": time, "stage": stage, "part": part, "seconds": seconds}
    return json.dumps({**line, **base, **other})


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    lines = [
        event("download", "00000", 1010, 10, counts={"rows": 100}, bytes=500),
        event("download", "00001", 1015, 10, counts={"rows": 100}, bytes=500),
        event(
            "recaption",
            "00000",
            1020,
            4,
            counts={"captions": 8},
            figures={"tokens": 40.0, "vlm_retries": 3.0},
        ),
        event("download", "00002", 1020, 0, error="OSError: disk"),
        # An hour later somebody goes on.
        event("download", "00002", 4620, 10, counts={"rows": 100}, bytes=500),
        event("recaption", "00001", 4630, 6, counts={"captions": 8}, figures={"tokens": 60.0}),
        event("score", "00000", 4630, 0, error="ValueError: no"),
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + '\n{"time": 46')
    return Directory(tmp_path)


def test_spans_leave_out_pauses_and_count_overlaps_once(run: Directory) -> None:
    activity = read_activity(run)
    download = activity.stages["download"]
    assert download.seconds == 30
    assert download.span == 25  # 1000 to 1015, 4610 to 4620
    assert download.rate == 300 / 25
    assert activity.span == 15 + 4 + 10 + 6  # between the tasks nothing ran
    assert activity.stages["recaption"].figures["tokens"] == 100
    assert activity.stages["recaption"].retries == 3


def test_errors_are_those_of_the_last_try(run: Directory) -> None:
    activity = read_activity(run)
    assert activity.failing == {("score", "00000"): "ValueError: no"}
    assert activity.tries["download", "00002"] == 1
    assert activity.stages["download"].errors == 1


def test_time_left_is_the_work_left_at_the_pace_so_far(run: Directory) -> None:
    activity = read_activity(run)
    at_once = 40 / 35  # 40 task seconds in 35 seconds of work
    assert seconds_left(activity, {"download": 2}) == pytest.approx(2 * 10 / at_once)
    assert seconds_left(activity, {"recaption": 1, "download": 0}) == pytest.approx(5 / at_once)
    assert seconds_left(activity, {"choose": 1}) is None
    assert seconds_left(read_activity(run / "nothing"), {"download": 1}) is None


def test_merged_intervals() -> None:
    assert merged([(5, 7), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 7)]


def test_a_lane_per_stage_is_drawn(run: Directory) -> None:
    lanes = charts.lanes(read_activity(run))
    assert set(lanes) == {"download", "recaption", "score"}
    assert lanes["download"] != lanes["recaption"]
    assert charts.lanes(read_activity(run / "nothing")) == {}
