"""Whole runs as a user starts them: `python -m pipeline shards` in a process of its own."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

SHARDS = ("shards", "data_configs/scenes.yaml")
SMALL = (
    "source.train=90",
    "source.test=30",
    "part_rows=30",
    "pack.shard_mb=0.4",
    "cluster.dashboard=null",
)
ROWS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(run: Path, port: int, *overrides: str) -> list[str]:
    """Return the command that builds a small world's shards, served on `port`."""
    served = (f"source.port={port}", f"download.allow_private_hosts=['127.0.0.1:{port}']")
    return [sys.executable, "-m", "pipeline", *SHARDS, f"run={run}", *served, *SMALL, *overrides]


def build(run: Path, port: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run, port, *overrides), capture_output=True, text=True, timeout=300, check=False
    )


def build_measured(run: Path, port: int) -> tuple[subprocess.CompletedProcess[str], int]:
    """Build a run; return also the largest memory that any one of its processes took [KiB]."""
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, *command(run, port)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done, int(done.stdout.splitlines()[-1])


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another command of the pipeline."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the trainer reads."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "shards").iterdir())
    }


def without_coverage() -> dict[str, str]:
    """Return the environment of a process that is to be sent SIGTERM.

    Coverage's own handler of that signal waits for a lock that the interrupted code may hold.
    """
    return {key: v for key, v in os.environ.items() if not key.startswith("COVERAGE_PROCESS")}


def wait_for_work(folder: Path, process: subprocess.Popen[bytes], delay: float) -> None:
    """Wait until the run has cut its source, then some more."""
    while not (folder / "parts" / "parts.json").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(delay)
