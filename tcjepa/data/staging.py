"""Files of the node's cache folder: written whole or not at all, by one process at a time.

A file under way has a temporary name and is locked (flock) by its writer. The kernel drops the lock
when the writer dies, however it dies, so whoever finds an unlocked temporary may delete it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from pipeline.storage import TEMPORARY_PREFIX
from tcjepa.data.errors import CacheFullError

_LOCK: Final = "staging.lock"
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process or thread of the node has at a time."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def temporary(folder: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, open for reading and writing, that is deleted at the end of the block."""
    path = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with locked(folder / _LOCK):  # a sweep must not come before the lock
            file = path.open("xb+")
            fcntl.flock(file, fcntl.LOCK_EX)
        with file:
            yield file
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def staged(target: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file that becomes `target` if the block ends well, and nothing otherwise.

    Its bytes are on the disk before it gets its name, so not even a power cut leaves a part under
    it. Raises `CacheFullError` if the disk is full then; writes in the block belong into
    `room_for`.
    """
    with temporary(target.parent) as file:
        yield file
        with room_for(target):
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(target)


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Turn a full disk met while writing `target` into `CacheFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise CacheFullError(
            f"no room for {target.name} in {target.parent} ({error.strerror}); free some space, "
            "lower data.cache_bytes, or name another folder with data.cache_dir"
        ) from error


def sweep(folder: Path) -> None:
    """Delete the temporary files whose writers are gone."""
    with locked(folder / _LOCK):
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except (BlockingIOError, FileNotFoundError):
                continue  # being written, or just finished
