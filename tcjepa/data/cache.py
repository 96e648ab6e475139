"""Remote shards on the node's disk: fetched whole by one process, checked, evicted by bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pipeline.storage import TEMPORARY_PREFIX
from tcjepa.data.errors import ShardUnavailableError
from tcjepa.data.remote import RangesIgnoredError, Remote
from tcjepa.data.staging import locked, room_for, staged, sweep
from tcjepa.data.verify import Expected

_UNKNOWN = Expected(None, None)


class ShardCache:
    """Local copies of a remote directory's shards, shared by all processes of a node.

    A copy lives under a name made of the directory's URL and the index digest, so neither equal
    names in two directories nor rebuilt shards ever meet. Safe between processes and threads (file
    locks); eviction unlinks files that others may have open, which POSIX allows: they keep reading
    what they opened. `expected` are the manifest's sizes and checksums, `limit` is in bytes.
    """

    def __init__(
        self,
        remote: Remote,
        digest: str,
        cache_dir: Path,
        limit: int,
        expected: Mapping[str, Expected],
    ) -> None:
        self.remote, self._limit, self._expected = remote, limit, expected
        name = hashlib.sha256(f"{remote.directory.url} {digest}".encode()).hexdigest()[:16]
        self._all = cache_dir / "shards"
        self._folder = self._all / name

    def close(self) -> None:
        """Break off fetches under way."""
        self.remote.close()

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
        the store does not answer after a few attempts with growing pauses, and `CacheFullError`
        when the disk is full.
        """
        path = self.cached(shard)
        if path is not None:
            return path
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / shard
        with locked(self._folder / f"{shard}.lock"):
            if self.cached(shard) is None:  # else another process has fetched it meanwhile
                self._download(shard, path)
                self.cached(shard)
        self._make_room(0, keep=path)
        return path

    def read_range(self, shard: str, start: int, end: int) -> bytes:
        """Return bytes `[start, end)` of a shard: of its copy, or if there is none from afar.

        A server that ignores ranges makes us fetch the shard after all. Raises as `fetch` does.
        """
        path = self.cached(shard)
        while True:
            if path is None:
                try:
                    return self.remote.read_range(shard, start, end)
                except RangesIgnoredError:
                    path = self.fetch(shard)
                except FileNotFoundError as error:
                    raise self._missing(shard) from error
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(end - start)
            except FileNotFoundError:  # evicted since
                path = None

    def _download(self, shard: str, path: Path) -> None:
        try:
            size = self._expected.get(shard, _UNKNOWN).size
            if size is None:
                size = self.remote.size(shard)
            self._make_room(size or 0, keep=path)
            with staged(path) as sink:
                self.remote.retried(shard, lambda: self._copy(shard, size, sink))
        except FileNotFoundError as error:
            raise self._missing(shard) from error

    def _copy(self, shard: str, size: int | None, sink: IO[bytes]) -> None:
        """Copy a remote shard into a file, from its beginning; raises `OSError` if it differs."""
        digest = hashlib.sha256()
        sink.seek(0)
        with room_for(self._folder / shard):
            sink.truncate(size or 0)  # other fetchers see at once how much room this one takes
        length = 0
        for block in self.remote.blocks(shard, size):
            with room_for(self._folder / shard):
                sink.write(block)
            digest.update(block)
            length += len(block)
        sink.truncate(length)
        expected = self._expected.get(shard, _UNKNOWN)
        if size is not None and length != size:
            source = "store" if expected.size is None else "manifest"
            raise OSError(f"{length} bytes came, the {source} says {size}")
        if expected.sha256 is not None and digest.hexdigest() != expected.sha256:
            raise OSError("what came does not have the SHA-256 of the manifest")

    def _missing(self, shard: str) -> ShardUnavailableError:
        url = self.remote.directory.url
        return ShardUnavailableError(f"shard {shard} is in the index but not in {url}")

    def _make_room(self, size: int, keep: Path) -> None:
        """Unlink the least recently used shards of any directory until `size` more bytes fit."""
        self._all.mkdir(parents=True, exist_ok=True)
        with locked(self._all / "evict.lock"):
            for folder in self._all.iterdir():
                if folder.is_dir():
                    sweep(folder)
            found = []
            total = size
            for path in self._all.glob("*/*"):
                if path.suffix == ".lock":
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:  # a temporary that was given up or got its name
                    continue
                total += status.st_size
                if not path.name.startswith(TEMPORARY_PREFIX):
                    found.append((status.st_mtime_ns, status.st_size, path))
            for _, freed, path in sorted(found):
                if total <= self._limit:
                    return
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= freed
