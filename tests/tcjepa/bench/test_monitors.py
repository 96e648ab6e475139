"""`bench monitors`: what watching costs, whatever it is on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcjepa.cli import main
from tests.tcjepa.train.runs import write_config


def test_shares_add_up_and_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, steps=1000, monitor_every=10, monitor_images=16)
    target = tmp_path / "monitors.json"
    asked = ["bench", "monitors", str(config), f"data.shards={tmp_path / 'shards'}"]
    assert main([*asked, "--rounds", "3", "--json", str(target)]) == 0
    found = json.loads(target.read_text())["monitors"]
    assert found == json.loads(capsys.readouterr().out)
    assert (found["batch"], found["monitor_every"], found["monitor_images"]) == (8, 10, 16)
    shares = ("forward_share", "held_share", "alarms_share")
    assert found["total_share"] == pytest.approx(sum(found[share] for share in shares))
    assert found["step"] > 0 and found["held_share"] > 0 and found["alarms_share"] > 0


def test_shards_are_made_where_none_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.encoder_kwargs.depth=1", "model.predictor.depth=1", "train.threads=1"]
    assert main(["bench", "monitors", "scenes_tiny", *small, "--rounds", "1", "--batch", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] > 0


def test_a_file_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "nowhere" / "monitors.json"
    assert main(["bench", "monitors", "scenes_tiny", "--json", str(target)]) == 2
    assert "there is no folder" in capsys.readouterr().err
