"""Runs and workers killed for real, at random moments: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.pipeline.runs import build, command, digests, wait_for_work, without_coverage

#: Kills of each kind; more by `KILLS=20 pytest tests/pipeline/test_kills.py`.
KILLS = int(os.environ.get("KILLS", "3"))


def start(folder: Path, port: int, *overrides: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, port, *overrides),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_killed_runs_end_byte_identical(run: Path, port: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    delays = random.Random(time.time_ns())
    for kill in range(KILLS):
        if kill % 4 == 3:  # a run that was finished meanwhile has nothing more to be killed in
            folder = tmp_path / f"run-{kill}"
        process = start(folder, port)
        wait_for_work(folder, process, delays.uniform(0, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if kill % 4 == 2 or kill == KILLS - 1:
            done = build(folder, port)
            assert done.returncode == 0, done.stderr
            assert digests(folder) == digests(run)
            leftovers = [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
            assert leftovers == []


def test_killed_workers_lose_nothing(run: Path, port: int, tmp_path: Path) -> None:
    killed = 0
    delays = random.Random(time.time_ns())
    for attempt in range(10 * KILLS):
        folder = tmp_path / f"run-{attempt}"
        process = start(folder, port, "cluster.retries=3")
        wait_for_work(folder, process, 0)
        # A task whose workers died four times is given up, as one that kills them would be.
        here = 0
        while process.poll() is None and here < 3 and killed + here < KILLS:
            time.sleep(delays.uniform(0.5, 3))
            here += _kill_a_worker(process.pid)
        assert process.wait(timeout=300) in (0, 1)
        if process.returncode:
            assert here, "it failed though nobody touched it"
            done = build(folder, port)
            assert done.returncode == 0, done.stderr
        assert digests(folder) == digests(run)
        killed += here
        if killed >= KILLS:
            break
    assert killed >= KILLS


def _kill_a_worker(driver: int) -> int:
    """Kill a worker process of the run; return how many were killed."""
    try:
        children = psutil.Process(driver).children()
        workers = [c for c in children if "spawn_main" in " ".join(c.cmdline())]
        if not workers:
            return 0
        random.choice(workers).kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


def test_interrupted_run_says_130_and_goes_on(run: Path, port: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, port), stderr=subprocess.PIPE, text=True, env=without_coverage()
    )
    wait_for_work(folder, process, 2.0)  # type: ignore[arg-type]
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    if process.returncode != 0:  # it may have been done already
        assert process.returncode == 130, stderr
        assert "goes on" in stderr
    done = build(folder, port)
    assert done.returncode == 0, done.stderr
    assert digests(folder) == digests(run)
