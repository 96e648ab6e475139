"""Runs that are killed, signalled, repeated: real processes, exact losses."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tcjepa.cli import main
from tcjepa.train.log import read
from tests.tcjepa.train.runs import finish, start, write_config


def losses(run: Path) -> list[tuple[object, ...]]:
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in read(run)]


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not list(path.glob(pattern)):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a config and the run directory of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    config = write_config(folder, steps=120, checkpoint_every_steps=7, log_every=5)
    run = folder / "undisturbed"
    code, said = finish(start("pretrain", config, f"run={run}"))
    assert code == 0, said
    return config, run


def test_kill_9_loses_nothing(undisturbed: tuple[Path, Path]) -> None:
    config, expected = undisturbed
    run = expected.parent / "killed"
    process = start("pretrain", config, f"run={run}")
    wait_for(run, "checkpoints/step-*.json", process)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.wait()
    assert not list(run.glob("checkpoints/step-00000120.json")), "killed too late to test anything"
    code, said = finish(start("pretrain", config, f"run={run}"))
    assert code == 0, said
    assert "resumes after step" in said
    assert losses(run) == losses(expected)
    assert [r["step"] for r in read(run)] == list(range(120))


def test_sigterm_saves_and_the_rerun_goes_on(undisturbed: tuple[Path, Path]) -> None:
    config, expected = undisturbed
    run = expected.parent / "terminated"
    process = start("pretrain", config, f"run={run}")
    wait_for(run, "checkpoints/step-*.json", process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 130, said
    done = int(read(run)[-1]["step"] or 0) + 1
    assert list(run.glob(f"checkpoints/step-{done:08d}.json"))
    assert f"after step {done} of 120" in said
    code, said = finish(start("pretrain", config, f"run={run}"))
    assert code == 0, said
    assert losses(run) == losses(expected)


def test_a_done_run_says_so_and_other_settings_are_refused(
    undisturbed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = undisturbed
    assert main(["pretrain", str(config), f"run={run}"]) == 0
    assert "is done" in capsys.readouterr().err
    assert main(["pretrain", str(config), f"run={run}", "train.lr=0.1"]) == 2
    said = capsys.readouterr().err
    assert "train.lr: 0.001 → 0.1" in said
    assert "--fresh" in said
