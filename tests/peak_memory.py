"""How much memory a piece of work takes at its peak, as the system counts it.

`tracemalloc` sees only what Python's allocators hand out, and ends a process now and then in which
a library has other threads.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def peak_rss() -> int:
    """Return the most that this process has had in memory so far [bytes].

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_growth(
    work: Callable[..., Any], *arguments: Any, warm_up: tuple[Any, ...]
) -> tuple[Any, int]:
    """Do work in a new process; return its result and by how much it raised the peak [bytes].

    Work on `warm_up`'s arguments comes first and is not counted: it loads and caches what any work
    needs, and should take little itself.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_growth, work, arguments, warm_up).result()


def _peak_growth(
    work: Callable[..., Any], arguments: tuple[Any, ...], warm_up: tuple[Any, ...]
) -> tuple[Any, int]:
    work(*warm_up)
    before = peak_rss()
    return work(*arguments), peak_rss() - before
