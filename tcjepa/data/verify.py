"""Whether shards are the ones that the index was made for, by what `manifest.json` says of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pipeline.schema import MANIFEST_FILE, SchemaError
from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.data.errors import DamagedShardError
from tcjepa.data.remote import Remote
from tcjepa.data.staging import locked, room_for, staged

Verify: TypeAlias = Literal["none", "size", "sha256"]

_THREADS: Final = 8
_NAMED: Final = 5


class Expected(NamedTuple):
    """What the manifest says of a shard: its size [bytes] and SHA-256, as far as it does."""

    size: int | None
    sha256: str | None


def read_expected(directory: Directory, remote: Remote | None) -> dict[str, Expected]:
    """Return what the manifest says of each shard; empty without a manifest.

    Raises `SchemaError` for a manifest that cannot be read as one.
    """
    try:
        text = remote.read(MANIFEST_FILE) if remote else directory.read_bytes(MANIFEST_FILE)
    except FileNotFoundError:
        return {}
    try:
        manifest: dict[str, Any] = json.loads(text)
        shards = manifest.get("shards", [])
        return {s["name"]: Expected(s.get("bytes"), s.get("sha256")) for s in shards}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"{MANIFEST_FILE} of {directory.url} is damaged ({error}); restore it, rebuild the "
            "shards, or set data.verify=none"
        ) from error


def keep_expected(expected: Mapping[str, Expected], folder: Path) -> Path:
    """Write what was expected when the run began into a file named after it, for its workers."""
    text = json.dumps(expected, sort_keys=True).encode()
    path = folder / f"expected-{hashlib.sha256(text).hexdigest()[:16]}.json"
    if not path.exists():
        with staged(path) as file, room_for(path):
            file.write(text)
    return path


def load_expected(path: Path) -> dict[str, Expected]:
    """Return what `keep_expected` wrote."""
    return {name: Expected(*values) for name, values in json.loads(path.read_bytes()).items()}


def check_there(directory: Directory, expected: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if there is no manifest, or one that lists no shard."""
    if not expected:
        raise ConfigError(
            f"data.verify=sha256: {directory.url} has no {MANIFEST_FILE} to verify against, or one "
            "without shards; use data.verify=size"
        )


def check_listed(directory: Directory, shards: Iterable[str], expected: Mapping[str, Any]) -> None:
    """Raise `DamagedShardError` if the index names shards that the manifest does not."""
    missing = {shard: "not in the manifest" for shard in shards if shard not in expected}
    if expected and missing:
        _refuse(directory, missing)


def check_local(
    directory: Directory, needed: Mapping[str, int], expected: Mapping[str, Expected]
) -> None:
    """Compare the sizes of local shards with the manifest, and with what the index needs of them.

    `needed` are the bytes up to the last sample of each shard. One `stat` per shard. Raises
    `DamagedShardError` that names the first few of those that differ.
    """

    def wrong(shard: str) -> str | None:
        try:
            found = Path(directory.path(shard)).stat().st_size
        except OSError as error:
            return error.strerror or str(error)
        size = expected.get(shard, Expected(None, None)).size
        if size is not None and found != size:
            return f"{found} bytes, the manifest says {size}"
        if found < needed[shard]:
            return f"{found} bytes, the index needs {needed[shard]}"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:  # a stat on a network file system takes its time
        reasons = dict(zip(needed, pool.map(wrong, needed), strict=True))
    _refuse(directory, {shard: reason for shard, reason in reasons.items() if reason})


def check_hashes(
    directory: Directory, shards: Iterable[str], expected: Mapping[str, Expected], folder: Path
) -> None:
    """Compare the SHA-256 of local shards with the manifest, once per node and file.

    What was found is kept in `folder` with each file's size and times, so that neither other ranks
    nor a resumed run reads an unchanged shard again. Raises `DamagedShardError`.
    """
    name = hashlib.sha256(directory.url.encode()).hexdigest()[:16]
    record = folder / f"verified-{name}.json"
    with locked(folder / f"verified-{name}.lock"):
        known: dict[str, list[Any]] = json.loads(record.read_text()) if record.exists() else {}

        def digest(shard: str) -> list[Any]:
            path = Path(directory.path(shard))
            status = path.stat()
            mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            if known.get(shard, [])[:-1] == mark:
                return known[shard]
            with path.open("rb") as file:
                return [*mark, hashlib.file_digest(file, "sha256").hexdigest()]

        wanted = [shard for shard in dict.fromkeys(shards) if expected[shard].sha256]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(wanted, pool.map(digest, wanted), strict=True))
        with staged(record) as file, room_for(record):
            file.write(json.dumps(known | found).encode())
    wrong = "its SHA-256 is not that of the manifest"
    _refuse(directory, {s: wrong for s, (*_, sha256) in found.items() if sha256 != expected[s][1]})


def _refuse(directory: Directory, wrong: Mapping[str, str]) -> None:
    if not wrong:
        return
    named = [f"{shard} ({reason})" for shard, reason in sorted(wrong.items())[:_NAMED]]
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    raise DamagedShardError(
        f"data.shards: shards of {directory.url} are not those that its index was made for: "
        f"{', '.join(named)}{more}. Copy them anew or rebuild with `python -m pipeline shards`; "
        "data.verify=none trains on what can be read"
    )
