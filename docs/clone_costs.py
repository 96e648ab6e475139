"""Measure what the first commands cost on a fresh clone, on a machine that does nothing else.

python3 docs/clone_costs.py [FOLDER]      takes as long as `make pretrain` does

Clones what is committed here into FOLDER (default: a new temporary one), runs the README's first
commands there, and writes docs/results/clone.json of this checkout.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("setup", "shards", "pretrain")


def timed(folder: Path, *command: str) -> float:
    """Run a command and return its wall time [s]; raises `CalledProcessError` if it fails."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    """Return minutes and seconds, as people say them."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole >= 120 else f"{whole} s"


def gigabytes(folder: Path) -> float:
    """Return the disk space of a folder [GB]."""
    found = subprocess.run(
        ["du", "-s", "-B1", folder], check=True, capture_output=True, text=True
    ).stdout
    return int(found.split()[0]) / 1e9


def main() -> None:
    """Clone, run, and write what it took."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="clone-"))
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    setup, shards, pretrain = (timed(folder, "make", target) for target in TARGETS)
    run = folder / "runs" / "scenes"
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    log = (run / "pretrain" / "log.jsonl").read_text().splitlines()
    steps = 1 + int(json.loads(log[-1])["step"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    environment = gigabytes(folder / ".venv")
    rows = [
        [
            "`make pretrain`, installation included",
            duration(setup + shards + pretrain),
            f"{gigabytes(folder):.1f} GB of disk, of which {environment:.1f} are the environment",
        ],
        ["– its installation", duration(setup), "depends on the package index"],
        [
            "– its shards",
            duration(shards),
            f"{manifest['funnel']['rows']:,} URLs, {manifest['samples']:,} samples",
        ],
        ["– its training and evaluation", duration(pretrain), f"{steps:,} steps"],
        ["largest process", "", f"{peak:.2f} GB of memory"],
    ]
    found = {
        "about": "what the first commands cost on a fresh clone",
        "command": "python3 docs/clone_costs.py",
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": f"{os.cpu_count()} CPU cores",
        "tables": {"costs": {"columns": ["what", "time", "result"], "rows": rows}},
    }
    target = ROOT / "docs" / "results" / "clone.json"
    target.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(f"{target.relative_to(ROOT)} holds what {folder} took; `make figures` shows it")


if __name__ == "__main__":
    main()
