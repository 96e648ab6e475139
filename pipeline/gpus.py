"""Which GPU each of several processes on a machine gets. Shared with `tcjepa`; imports no torch.

A GPU is named as `CUDA_VISIBLE_DEVICES` names it: by number or UUID.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"


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


__all__ = ["VARIABLE", "groups", "least_used", "visible"]
