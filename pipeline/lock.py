"""One process at a time in a run directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.settings import ConfigError
from pipeline.storage import TEMPORARY_PREFIX, Directory


@contextmanager
def locked(run: Directory) -> Iterator[None]:
    """Hold the run directory's lock, which the kernel drops even when the process is killed.

    What a killed process left half-written is removed. Raises `ConfigError` if another process
    holds the lock. Object stores have no locks: there, two runs at once waste work, and the later
    commit of a file wins.
    """
    if not run.is_local:
        yield
        return
    import fcntl

    folder = Path(run.path())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run: another process is working in {run.url}") from None
        _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
