"""Which GPU each of several processes on a machine gets. Shared with `tcjepa`; imports no torch.

A GPU is named as `CUDA_VISIBLE_DEVICES` names it: by number or UUID.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
#: What this process claimed, and the descriptor of the locked file that says so while it lives.
_claimed: dict[str, int] = {}


def visible() -> list[str]:
    """Return the GPUs that this process may use; [] where there are none, or no NVIDIA driver."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return [name for name in map(str.strip, named.split(",")) if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(number) for number in range(count)]


def least_used(gpus: Sequence[str], taken: Iterable[str | None]) -> str | None:
    """Return the first of the GPUs that the fewest of the `taken` are; None without GPUs."""
    count = Counter(taken)
    return min(gpus, key=lambda gpu: count[gpu]) if gpus else None


def groups(gpus: Sequence[str], size: int) -> list[str]:
    """Return values of `VARIABLE` with `size` GPUs each; what is left over is not used."""
    whole = len(gpus) // size * size
    return [",".join(gpus[start : start + size]) for start in range(0, whole, size)]


def claim(each: float) -> str | None:
    """Return this process's own GPUs of the visible ones, as `VARIABLE` has them; None if it
    comes too late.

    `each` is how many a process has; of half a GPU each, two processes share one. Processes of a
    user on a machine, or in a SLURM job, where numbers count from 0 anew, are told apart by file
    locks, which end with the process: whoever starts in its place has its GPUs. "" where no GPU
    is visible; a second call returns what the first did.
    """
    gpus = visible()
    if not gpus or _claimed:
        return next(iter(_claimed), "")
    scope = f"{os.getuid()}-{os.environ.get('SLURM_JOB_ID', 'host')}"
    sharers = max(1, math.floor(1 / each))
    for turn in range(sharers):
        for group in groups(gpus, math.ceil(each)):
            safe = "".join(c if c.isalnum() else "-" for c in group)
            path = Path(tempfile.gettempdir()) / f"tcjepa-gpu-{scope}-{safe}-{turn}.lock"
            # Anybody may write to that folder: no link is followed there, and nothing emptied.
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            _claimed[group] = lock
            return group
    return None


__all__ = ["VARIABLE", "claim", "groups", "least_used", "visible"]
