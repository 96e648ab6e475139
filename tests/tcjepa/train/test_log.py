"""The run's log: each step once, whatever a crash left behind."""

import json
from pathlib import Path

import pytest
import torch

from tcjepa.train.distributed import World
from tcjepa.train.log import LOG_FILE, STATUS_FILE, RunLog, read, truncate
from tcjepa.train.run import Run
from tcjepa.watch.runfiles import read_run
from tests.tcjepa.train.runs import tiny_config


def test_a_resumed_log_has_each_step_once(tmp_path: Path):
    with RunLog(tmp_path, 0) as log:
        log.write([{"step": step, "loss": float(step)} for step in range(6)])
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with RunLog(tmp_path, 4) as log:
        log.write([{"step": step, "loss": float(step)} for step in range(4, 8)])
    assert [record["step"] for record in read(tmp_path)] == list(range(8))


def test_tensorboard_can_read_it_back(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0) as log:
        log.write([{"step": 0, "loss": 2.5, "monitor/text_gain": 0.25}])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("loss")[0].value == 2.5
    assert events.Scalars("monitor/text_gain")[0].value == 0.25


def test_infinities_stay_valid_json(tmp_path: Path):
    with RunLog(tmp_path, 0) as log:
        log.write([{"step": 0, "loss": float("nan")}])
    assert json.loads((tmp_path / LOG_FILE).read_text())["loss"] == "nan"


def test_other_ranks_write_nothing(tmp_path: Path):
    with RunLog(tmp_path / "run", 0, enabled=False) as log:
        log.write([{"step": 0, "loss": 1.0}])
    assert not (tmp_path / "run").exists()
    truncate(tmp_path, 0)
    assert read(tmp_path) == []


def test_the_status_tells_a_stopped_run_from_a_failed_and_a_killed_one(tmp_path: Path):
    def status():
        return json.loads((tmp_path / STATUS_FILE).read_text())

    length = {"steps": 9, "warmup_steps": 2, "precision": None}
    log = RunLog(tmp_path, 0, **length)
    assert status() == {**length, "ended": None, "error": None}  # what a killed run leaves
    log.close()
    assert status()["ended"] == "stopped"
    with pytest.raises(ValueError, match="too hot"), RunLog(tmp_path, 0, **length):
        raise ValueError("too hot")
    assert status() == {**length, "ended": "failed", "error": "ValueError: too hot"}


@pytest.mark.parametrize(
    ("given", "warmup"),
    [
        ("train.warmup_steps=3", 3),
        ("train.warmup_steps=null train.warmup_epochs=1", 5),  # epochs of 40 images, batches of 8
        ("train.warmup_steps=null", 2),  # a fifth of the run
    ],
)
def test_the_status_holds_the_lengths_that_the_run_uses(tmp_path: Path, given: str, warmup: int):
    config = tiny_config(tmp_path, *given.split(), "train.steps=12")
    with Run(config, World(0, 1, 0, 1, torch.device("cpu")), print):
        pass
    found = read_run(tmp_path / "run", "run")
    assert (found.steps, found.warmup_steps) == (12, warmup)
