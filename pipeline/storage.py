"""Files that are either whole or absent, on any fsspec file system.

Shared with `tcjepa`; needs only fsspec and pyarrow. Every commit is write-to-temporary, then rename
(local) or one put (object stores, where a put is atomic), so a crash leaves nothing that looks
finished. Temporary names start with `.tmp-`.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

TEMPORARY_PREFIX = ".tmp-"
_FINGERPRINT_KEY = b"fingerprint"


def scratch_root() -> str | None:
    """Return the folder for scratch of this process's Dask worker; None where it is none.

    What a killed worker leaves there, the next one that starts on the machine removes. Nobody
    sweeps the system's temporary folder.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return str(distributed.get_worker().local_directory)
    except ValueError:
        return None


class Directory:
    """A directory at a local path or fsspec URL; picklable, so Dask tasks can carry it."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/") or "/"
        self._fs: Any = None
        self._root = ""

    def __getstate__(self) -> str:
        return self.url

    def __setstate__(self, url: str) -> None:
        self.url, self._fs, self._root = url, None, ""

    def __repr__(self) -> str:
        return f"Directory({self.url!r})"

    def __truediv__(self, name: str) -> Directory:
        return Directory(f"{self.url}/{name}")

    @property
    def fs(self) -> Any:
        """The fsspec file system that holds this directory."""
        if self._fs is None:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        return self._fs

    @property
    def is_local(self) -> bool:
        """Whether the directory is on this machine's file system."""
        return isinstance(self.fs, LocalFileSystem)

    def absolute(self) -> Directory:
        """Return this directory by a name that is its own from any working directory."""
        return Directory(self.path()) if self.is_local else self

    def path(self, name: str = "") -> str:
        """Return the path of a file in the directory, as `self.fs` names it."""
        _ = self.fs
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str) -> bool:
        """Return whether a file is there (never a stale listing)."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.path(name)))

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names of committed files that match a glob pattern."""
        self.fs.invalidate_cache()
        try:  # not `fs.glob`: the directory's own path may hold brackets
            listed = self.fs.ls(self.path(), detail=False)
        except FileNotFoundError:
            return []
        names = {PurePosixPath(path).name for path in listed}
        matching = fnmatch.filter(names, pattern)
        return sorted(name for name in matching if not name.startswith(TEMPORARY_PREFIX))

    def read_bytes(self, name: str) -> bytes:
        """Return a file's content; raises `FileNotFoundError`."""
        return bytes(self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes `[start, end)` of a file."""
        return bytes(self.fs.cat_file(self.path(name), start=start, end=end))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Commit a file atomically, replacing what was there."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), data)
            return
        temporary = self.temporary(name)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.commit(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Commit a UTF-8 text file atomically."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Commit a JSON file atomically, keys sorted, so equal values are equal bytes."""
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Return a JSON file's value."""
        return json.loads(self.read_bytes(name))

    def temporary(self, name: str) -> Path:
        """Return a fresh local path to write `name` to, for `commit`; the caller removes it."""
        import tempfile

        unique = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{PurePosixPath(name).name}"
        if not self.is_local:
            return Path(scratch_root() or tempfile.gettempdir()) / unique
        parent = Path(self.path(name)).parent
        parent.mkdir(parents=True, exist_ok=True)
        return parent / unique

    def commit(self, temporary: Path, name: str) -> None:
        """Move a finished local file into place atomically."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
        else:
            self.fs.put_file(str(temporary), self.path(name))
            temporary.unlink()

    def remove(self, name: str) -> None:
        """Delete a file or folder; it may be absent, or another process delete it first."""
        if self.exists(name):
            with suppress(FileNotFoundError):
                self.fs.rm(self.path(name), recursive=True)

    def write_table(self, name: str, table: pa.Table, fingerprint: str | None = None) -> None:
        """Commit a Parquet table atomically, its fingerprint in the file's metadata."""
        if fingerprint is not None:
            metadata = {**(table.schema.metadata or {}), _FINGERPRINT_KEY: fingerprint.encode()}
            table = table.replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a Parquet table, or some of its columns."""
        with self.fs.open(self.path(name), "rb") as file:
            return pq.read_table(file, columns=columns)

    def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint a table was committed with; None if absent or unreadable."""
        try:
            with self.fs.open(self.path(name), "rb") as file:
                metadata = pq.read_schema(file).metadata or {}
        except (OSError, ValueError, pa.ArrowException):  # absent, or a damaged footer
            return None
        value = metadata.get(_FINGERPRINT_KEY)
        return value.decode(errors="replace") if value is not None else None
