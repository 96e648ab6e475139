"""What the engine records, on stores that come and go. Jobs on clusters are in test_run.py."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import engine
from pipeline.cluster import ClusterConfig
from pipeline.device_errors import DeviceLostError
from pipeline.engine import EVENTS, Engine, Job
from pipeline.stages.task import StageReport, Task, is_done, which_done
from pipeline.storage import Directory


def test_a_store_out_of_reach_stops_no_work_and_loses_no_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "_FLUSH_S", 0.0)
    run = Directory(f"memory://{uuid.uuid4().hex}")
    write, reached = Directory.write_text, False

    def write_text(directory: Directory, name: str, text: str) -> None:
        if not reached:
            raise Exception("Could not connect to the endpoint")
        write(directory, name, text)

    monkeypatch.setattr(Directory, "write_text", write_text)
    with Engine(run, ClusterConfig()) as working:
        working.event("filter", "00000", 1.0, StageReport())
        assert not run.exists(EVENTS)
        reached = True
        working.event("filter", "00001", 1.0, StageReport())
    parts = [json.loads(line)["part"] for line in run.read_bytes(EVENTS).splitlines()]
    assert parts == ["00000", "00001"]
    assert f"{EVENTS} could not be written: Exception('Could not" in capsys.readouterr().err


def test_which_tables_are_done_is_found_together_as_one_by_one() -> None:
    run = Directory(f"memory://{uuid.uuid4().hex}")
    for number in range(0, 40, 3):
        Task(run, "filter", f"mark-{number % 2}").write(f"{number:05d}", pa.table({"row": [1]}))
    wanted = [("filter", f"{number:05d}", "mark-0") for number in range(40)]
    assert which_done(run, wanted) == [is_done(run, *one) for one in wanted]
    assert sum(which_done(run, wanted)) == 7


def lose_the_device_once(task: Task, lost: str, kind: str) -> StageReport:
    """Fail as where a GPU is lost, and say so; where that was said, report who works."""
    path = Path(lost)
    if not path.exists():
        path.write_text(str(os.getpid()))
        raise DeviceLostError("lost") if kind == "ours" else RuntimeError("CUDA error: unknown")
    return StageReport(counts={"process": os.getpid()})


@pytest.mark.parametrize("kind", ["ours", "torch's"])
def test_a_worker_that_lost_its_device_is_replaced_and_its_task_tried_again(
    kind: str, tmp_path: Path
) -> None:
    run, lost = Directory(tmp_path / "run"), tmp_path / "lost"
    with Engine(run, ClusterConfig(workers=1, dashboard=None)) as working:
        arguments = (str(lost), kind)
        job = Job("embed", "00000", "mark", lose_the_device_once, arguments)
        working.execute("images", [job])
        assert working.failures == {}
    (event,) = map(json.loads, run.read_bytes(EVENTS).splitlines())
    assert event["error"] is None
    assert event["counts"]["process"] != int(lost.read_text())
