"""`inspect` of runs: the page stands alone, escapes what it shows, and says what went wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from tcjepa.cli import main
from tcjepa.train.log import RunLog
from tcjepa.watch.runfiles import names_of, read_run
from tcjepa.watch.verdict import judge
from tests.tcjepa.watch.test_alarms import HEALTHY

STEPS = 400


def write_run(folder: Path, steps: int = STEPS, lr: float = 1e-3, **readings: float) -> Path:
    """Write the directory of a run that took `steps` of STEPS steps."""
    folder.mkdir(parents=True)
    section = {"steps": STEPS, "warmup_steps": 10, "ema": 0.9, "batch": 8, "log_every": 10}
    config = {"run": str(folder), "train": {**section, "lr": lr}, "model": {"text": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with RunLog(folder, 0, steps=STEPS) as log:
        falling = [4.0 * 0.998**step for step in range(steps)]
        log.write(
            [{**HEALTHY, "step": n, "loss": loss, **readings} for n, loss in enumerate(falling)]
        )
    return folder


def names(path: Path) -> set[str]:
    return {finding.name for finding in judge(read_run(path, "run"))}


def test_a_finished_healthy_run_has_no_findings(tmp_path: Path) -> None:
    assert judge(read_run(write_run(tmp_path / "run"), "run")) == []


def test_endings_are_told_apart(tmp_path: Path) -> None:
    assert names(write_run(tmp_path / "stopped", steps=50)) == {"incomplete"}
    killed = write_run(tmp_path / "killed", steps=50)
    (killed / "status.json").write_text(json.dumps({"steps": STEPS, "ended": None, "error": None}))
    assert names(killed) == {"running"}
    long_ago = time.time() - 3600
    os.utime(killed / "log.jsonl", (long_ago, long_ago))
    assert names(killed) == {"died"}
    failed = write_run(tmp_path / "failed", steps=50)
    error = {"steps": STEPS, "ended": "failed", "error": "DivergedError: step 50: loss"}
    (failed / "status.json").write_text(json.dumps(error))
    assert "DivergedError" in str(judge(read_run(failed, "run"))[0])


def test_unreadable_samples_are_counted_by_reason(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = [{"position": n, "uid": "a", "reason": "truncated"} for n in range(9)]
    (run / "unreadable.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [f.text for f in judge(read_run(run, "run"))] == [
        "9 samples could not be read and were replaced: truncated (9)"
    ]


def test_inspect_writes_one_page_about_all_runs_and_prints_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_run(tmp_path / "a" / "<b>run")
    bad = write_run(tmp_path / "b" / "run", lr=0.5, **{"monitor/encoder_std": 0.1})
    page = tmp_path / "page.html"
    assert main(["inspect", str(good), str(bad), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "<b>run: nothing looks wrong" in said
    assert "warning: step" in said
    assert "train.lr" in said
    text = page.read_text()
    for outside in ("http:", "https:", 'src="/', "<script", "<b>run"):
        assert outside not in text
    for part in ("2 runs compared", "&lt;b&gt;run", "0.001", "0.5", "all images get nearly"):
        assert part in text
    assert text.count("<polyline") >= 2 * 8


def test_a_single_run_gets_its_page_in_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["inspect", str(run)]) == 0
    assert (run / "inspect.html").stat().st_size > 10_000
    capsys.readouterr()
    assert main(["inspect", str(run), str(tmp_path)]) == 2
    assert "neither a run directory" in capsys.readouterr().err


def test_names_are_as_short_as_they_can_be() -> None:
    assert names_of([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert names_of([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
