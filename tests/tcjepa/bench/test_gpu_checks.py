"""The checks for GPUs run on a CPU too, where they see what there is to see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcjepa.bench.gpu_checks import CHECKS, main
from tests.tcjepa.train.runs import write_config

LENGTH = ["train.steps=6", "train.warmup_steps=2", "train.log_every=2", "train.monitor_every=4"]


def test_the_loop_reports_speed_waiting_and_the_monitors_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loop", str(write_config(tmp_path)), *LENGTH]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images_per_s"] > 0 and found["step_s"] == 8 / found["images_per_s"]
    assert 0 < found["data_wait"] < 1
    assert found["monitor_share"] == found["monitor_s"] / (4 * found["step_s"])
    assert found["cuda_memory_gib"] is None


def test_nothing_waits_for_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["syncs", str(write_config(tmp_path)), *LENGTH, "train.steps=10"]) == 0
    assert json.loads(capsys.readouterr().out) == {"waits": None}


def test_wrong_arguments_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert all(f"    {name} " in capsys.readouterr().err for name in CHECKS if name == "loop")
    assert main(["loop", str(write_config(tmp_path)), "train.bach=3"]) == 2
    assert "train.bach" in capsys.readouterr().err
