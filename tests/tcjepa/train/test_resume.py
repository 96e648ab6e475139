"""Runs that are killed, signalled, repeated: real processes, exact losses."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcjepa.cli import main
from tcjepa.train.log import read
from tcjepa.train.trace import TRACE_FILE
from tests.tcjepa.tiny_text import save_seeded_t5
from tests.tcjepa.train.runs import finish, some_captions, start, write_config
from tests.tcjepa.train.test_ranks import assert_same_training

KILLS = int(os.environ.get("KILLS", "3"))


def losses(run: Path) -> list[tuple[object, ...]]:
    return [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in read(run)]


def newest_step(run: Path) -> int:
    names = [path.stem for path in run.glob("checkpoints/step-*.json")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a config and the run directory of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    config = write_config(
        folder,
        steps=120,
        checkpoint_every_steps=3,
        log_every=5,
        trace=True,
        keep_every_steps=60,
    )
    run = folder / "undisturbed"
    code, said = finish(start("pretrain", config, f"run={run}"))
    assert code == 0, said
    return config, run


@pytest.mark.parametrize("async_save", [False, True])
def test_kill_9_loses_nothing(undisturbed: tuple[Path, Path], async_save: bool) -> None:
    """Killed `KILLS` times, about half of them while a checkpoint is being written."""
    config, expected = undisturbed
    run = expected.parent / f"killed_{async_save}"
    arguments = ("pretrain", config, f"run={run}", f"train.async_save={async_save}")
    draws = random.Random()
    for kill in range(KILLS):
        process = start(*arguments)
        steps_left = 120 - newest_step(run)
        goal = newest_step(run) + draws.randint(1, max(1, steps_left // (KILLS - kill + 1)))
        wait_until(lambda goal=goal: newest_step(run) >= goal, process)
        if draws.random() < 0.5:
            wait_until(lambda: any(run.glob("checkpoints/.tmp-*")), process)
        else:
            time.sleep(draws.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    code, said = finish(start(*arguments))
    assert code == 0, said
    assert "resumes after step" in said
    assert losses(run) == losses(expected)
    assert (run / TRACE_FILE).read_bytes() == (expected / TRACE_FILE).read_bytes()
    names = {path.name for path in (run / "checkpoints").iterdir()}
    kept = ("step-00000060", "step-00000117", "step-00000120")
    assert names == {f"{name}.{suffix}" for name in kept for suffix in ("json", "pt")}


def test_kill_9_loses_nothing_of_a_transformer_s_words(tmp_path: Path) -> None:
    """Words a resumed run encodes anew equal those that its cache held before, bit for bit."""
    texts = [item["text"] for number in range(40) for item in some_captions(number)]
    words = sorted({word for text in texts for word in text.split()})
    t5 = save_seeded_t5(tmp_path / "t5", words)
    config = write_config(tmp_path, steps=60, checkpoint_every_steps=4, log_every=5, trace=True)
    expected, run = tmp_path / "undisturbed", tmp_path / "killed"
    own = ("pretrain", config, f"text.encoder={t5}")
    code, said = finish(start(*own, f"run={expected}"))
    assert code == 0, said
    process = start(*own, f"run={run}")
    wait_until(lambda: newest_step(run) >= 4, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    code, said = finish(start(*own, f"run={run}"))
    assert code == 0, said
    assert "resumes after step" in said
    assert (run / TRACE_FILE).read_bytes() == (expected / TRACE_FILE).read_bytes()


def test_sigterm_saves_and_the_rerun_goes_on(undisturbed: tuple[Path, Path]) -> None:
    config, expected = undisturbed
    run = expected.parent / "terminated"
    process = start("pretrain", config, f"run={run}")
    wait_until(lambda: newest_step(run) > 0, process)
    for _ in range(3):  # one request may arrive more than once
        process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 130, said
    done = int(read(run)[-1]["step"] or 0) + 1
    assert list(run.glob(f"checkpoints/step-{done:08d}.json"))
    assert f"after step {done} of 120" in said
    code, said = finish(start("pretrain", config, f"run={run}"))
    assert code == 0, said
    assert losses(run) == losses(expected)


def test_a_scheduler_that_signals_every_process_of_a_job(undisturbed: tuple[Path, Path]) -> None:
    """Ranks get SIGTERM from it and again from torchrun, which forwards its own."""
    config, expected = undisturbed
    run = expected.parent / "preempted"
    process = start("pretrain", config, f"run={run}", ranks=2)
    wait_until(lambda: newest_step(run) > 0, process)
    for one in [*ranks_of(process), process]:
        one.send_signal(signal.SIGTERM)
    _, said = finish(process)
    done = int(read(run)[-1]["step"] or 0) + 1
    assert list(run.glob(f"checkpoints/step-{done:08d}.json")), said
    code, said = finish(start("pretrain", config, f"run={run}"))  # on one rank
    assert code == 0, said
    assert_same_training(run, expected)


@pytest.mark.parametrize("own", ["train.parallel=ddp", "train.parallel=fsdp2"])
def test_ranks_that_die_go_on(undisturbed: tuple[Path, Path], own: str) -> None:
    """One of two is killed, every other time while a checkpoint is being written."""
    config, expected = undisturbed
    run = expected.parent / f"killed_{own}"
    arguments = ("pretrain", config, f"run={run}", own, "train.async_save=true")
    kills = max(1, KILLS // 5)
    draws = random.Random()
    for kill in range(kills):
        process = start(*arguments, ranks=2)
        goal = newest_step(run) + draws.randint(3, 90 // kills)
        wait_until(lambda goal=goal: newest_step(run) >= goal, process)
        if kill % 2 == 0:
            wait_until(lambda: any(run.glob("checkpoints/.tmp-*")), process)
        draws.choice(ranks_of(process)).kill()
        code, said = finish(process)
        assert code != 0, said
    code, said = finish(start(*arguments, ranks=2))
    assert code == 0, said
    assert "resumes after step" in said
    assert_same_training(run, expected)


def test_ranks_stop_long_before_they_would_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler's patience, 30 s of torchrun's, is no matter of `log_every`."""
    # A process that is measured has coverage's handler of SIGTERM from its first moment on; without
    # it, a handler is the trainer's own.
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)
    config = write_config(
        tmp_path, steps=10**6, log_every=10**6, checkpoint_every_minutes=1000, trace=True
    )
    process = start("pretrain", config, ranks=2)
    wait_until(lambda: len(ranks_of(process, None)) == 2, process)
    ranks = ranks_of(process)
    for rank in ranks:
        wait_until(lambda rank=rank: catches(rank.pid, signal.SIGTERM), process)
    ranks[1].send_signal(signal.SIGTERM)  # one is enough: it tells the other
    _, said = finish(process)
    done = int(read(tmp_path / "run")[-1]["step"] or 0) + 1
    assert list((tmp_path / "run").glob(f"checkpoints/step-{done:08d}.json")), said
    assert f"after step {done} of 1000000" in said


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def ranks_of(process: subprocess.Popen[str], expected: int | None = 2) -> list[Any]:
    """Return the processes of torchrun's two ranks, without their loader workers."""
    psutil = pytest.importorskip("psutil")
    ranks = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie, which is one of them
            # A child that torchrun has just forked is still called as torchrun itself.
            command = child.cmdline()
            if "pretrain" in command and "torch.distributed.run" not in command:
                ranks.append(child)
    assert expected is None or len(ranks) == expected
    return ranks


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
