"""Remote shards on the node's disk: fetched whole by one process, checked, evicted by bytes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.schema import MANIFEST_FILE
from pipeline.storage import TEMPORARY_PREFIX, Directory

_BLOCK: Final = 8 * 2**20
_ATTEMPTS: Final = 4


class ShardUnavailableError(RuntimeError):
    """A shard that cannot be had: the run stops rather than train on substitutes for all of it."""


class ShardCache:
    """Local copies of a remote directory's shards, shared by all processes of a node.

    A copy lives under a name made of the directory's URL and the index digest, so rebuilt shards
    never meet old offsets. Safe between processes (file locks); eviction unlinks files that others
    may have open, which POSIX allows: they keep reading what they opened.
    """

    def __init__(self, directory: Directory, digest: str, cache_dir: Path, limit: int) -> None:
        self._directory, self._limit = directory, limit
        name = hashlib.sha256(f"{directory.url} {digest}".encode()).hexdigest()[:16]
        self._all = cache_dir / "shards"
        self._folder = self._all / name
        self._expected: dict[str, tuple[int | None, str | None]] | None = None

    def cached(self, shard: str) -> Path | None:
        """Return the local copy of a shard if it is here, marked as just used."""
        path = self._folder / shard
        now = time.time_ns()  # the kernel's own stamp ticks in milliseconds, too coarse to order
        try:
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return None
        return path

    def fetch(self, shard: str) -> Path:
        """Return the local copy of a shard, fetched if need be.

        Raises `ShardUnavailableError` when the shard is missing, does not match the manifest, or
        the store does not answer after a few attempts with growing pauses.
        """
        path = self.cached(shard)
        if path is not None:
            return path
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / f"{shard}.lock"):
            if self.cached(shard) is None:  # else another process has fetched it meanwhile
                self._download(shard)
                self.cached(shard)
        path = self._folder / shard
        self._evict(keep=path)
        return path

    def _download(self, shard: str) -> None:
        path = self._folder / shard
        for attempt in range(_ATTEMPTS):
            temporary = self._folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            try:
                size, digest = self._copy(shard, temporary)
                self._check(shard, size, digest)
                temporary.replace(path)
                return
            except FileNotFoundError as error:
                raise ShardUnavailableError(
                    f"shard {shard} is in the index but not in {self._directory.url}"
                ) from error
            except Exception as error:  # every fsspec back end has errors of its own
                if attempt == _ATTEMPTS - 1:
                    raise ShardUnavailableError(
                        f"cannot fetch shard {shard} from {self._directory.url} after "
                        f"{_ATTEMPTS} attempts: {type(error).__name__}: {error}"
                    ) from error
                warnings.warn(f"fetching {shard}: {error}; trying again", stacklevel=2)
                time.sleep(2**attempt / 4)
            finally:
                temporary.unlink(missing_ok=True)

    def _copy(self, shard: str, target: Path) -> tuple[int, str]:
        """Copy a remote shard; return its size [bytes] and SHA-256."""
        digest = hashlib.sha256()
        size = 0
        source = self._directory.fs.open(
            self._directory.path(shard), "rb", block_size=_BLOCK, cache_type="readahead"
        )
        with source, target.open("wb") as sink:
            while block := source.read(_BLOCK):
                sink.write(block)
                digest.update(block)
                size += len(block)
        return size, digest.hexdigest()

    def _check(self, shard: str, size: int, digest: str) -> None:
        if self._expected is None:
            self._expected = _expected_shards(self._directory)
        expected_size, expected_digest = self._expected.get(shard, (None, None))
        if expected_size is not None and size != expected_size:
            raise OSError(f"{shard} has {size} bytes, the manifest says {expected_size}")
        if expected_digest is not None and digest != expected_digest:
            raise OSError(f"{shard} does not have the SHA-256 of the manifest")

    def _evict(self, keep: Path) -> None:
        """Unlink the least recently used shards of any directory until the limit holds."""
        with _locked(self._all / "evict.lock"):
            found = []
            for path in self._all.glob("*/*"):
                if path.suffix == ".lock" or path.name.startswith(TEMPORARY_PREFIX):
                    continue
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._limit:
                    return
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= size


def _expected_shards(directory: Directory) -> dict[str, tuple[int | None, str | None]]:
    """Return (bytes, SHA-256) per shard from the manifest; empty without one."""
    try:
        manifest: dict[str, Any] = directory.read_json(MANIFEST_FILE)
    except FileNotFoundError:
        return {}
    shards = manifest.get("shards", [])
    return {shard["name"]: (shard.get("bytes"), shard.get("sha256")) for shard in shards}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
