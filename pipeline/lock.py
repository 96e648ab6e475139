"""One process at a time in a run directory."""

from __future__ import annotations

import _thread
import json
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.settings import ConfigError
from pipeline.storage import TEMPORARY_PREFIX, Directory

LOCK = ".lock"
#: On object stores: how often the holder says that it is there, and after what silence the lock is
#: anybody's [s]. Clocks of machines may differ by much of the difference.
BEAT_S = 30.0
STALE_S = 180.0
_SETTLE_S = 2.0


@contextmanager
def locked(run: Directory) -> Iterator[None]:
    """Hold the run directory's lock; what a killed process left half-written is removed.

    On a local disk the kernel drops the lock even when the process is killed. Object stores have no
    locks: there a file says who is at work and is written anew every `BEAT_S`; a killed holder's is
    taken over after `STALE_S` of silence. Raises `ConfigError` if another process holds the lock.
    """
    if not run.is_local:
        with _leased(run):
            yield
        return
    import fcntl

    folder = Path(run.path())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
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


@contextmanager
def _leased(run: Directory) -> Iterator[None]:
    token = uuid.uuid4().hex
    _acquire(run, token)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(run, token, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if _holder(run).get("token") == token:
            run.remove(LOCK)


def _acquire(run: Directory, token: str) -> None:
    try:
        run.fs.pipe_file(run.path(LOCK), _body(token), mode="create")
        return
    except FileExistsError:
        pass
    holder = _holder(run)
    silence = time.time() - holder.get("time", 0.0)
    if silence < STALE_S:
        raise ConfigError(
            f"run: {holder.get('host')} (process {holder.get('pid')}) is working in {run.url}, or "
            f"was {silence:.0f} s ago; if it was killed, wait {STALE_S - silence:.0f} s or delete "
            f"{LOCK} there"
        )
    run.write_bytes(LOCK, _body(token))
    time.sleep(_SETTLE_S)  # of two that take over at once the later writer wins
    if _holder(run).get("token") != token:
        raise ConfigError(f"run: another process has just begun to work in {run.url}")


def _beat(run: Directory, token: str, done: threading.Event) -> None:
    """Say again and again that this process is at work; stop it if another has taken over."""
    while not done.wait(BEAT_S):
        try:
            holder = _holder(run).get("token", token)
            if holder == token:
                run.write_bytes(LOCK, _body(token))
        except Exception as error:  # s3fs lets botocore's through; the next beat may come, too
            print(f"{LOCK} could not be renewed: {error!r}", file=sys.stderr)
            continue
        if holder != token:
            print(
                f"another process took over {run.url}, of which this one gave no sign for "
                f"{STALE_S:.0f} s; it stops",
                file=sys.stderr,
            )
            _thread.interrupt_main()
            return


def _holder(run: Directory) -> dict[str, Any]:
    try:
        return dict(json.loads(run.read_bytes(LOCK)))
    except (FileNotFoundError, ValueError):
        return {}


def _body(token: str) -> bytes:
    holder = {"token": token, "host": platform.node(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(holder).encode()
