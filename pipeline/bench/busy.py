"""How much CPU time a bench has used: on a shared machine a steadier measure than the clock."""

from __future__ import annotations

import os
from pathlib import Path


def busy_seconds() -> float:
    """Return the CPU time of this process and all its descendants so far, ended ones included [s].

    Zero where there is no `/proc`: then nothing can be said of other processes.
    """
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything; fields are counted from its end.
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended, and counts as its parent's child
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(map(int, fields[11:15]))  # own and ended children's, user and system
    own = os.getpid()
    return sum(t for pid, t in ticks.items() if _descends(pid, own, parents)) / _ticks_per_second()


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    seen: set[int] = set()
    while pid != ancestor and pid in parents and pid not in seen:
        seen.add(pid)
        pid = parents[pid]
    return pid == ancestor


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")
