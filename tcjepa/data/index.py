"""The rows a run trains on: index.parquet after split and filter, mapped rather than loaded.

The selection is written once per node as an Arrow file in the cache folder and memory-mapped, so
that ranks and loader workers share one copy and a hundred million rows cost page cache, not RAM.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.schema import INDEX_FILE, UID_LENGTH, SchemaError, check_index
from pipeline.settings import ConfigError
from pipeline.storage import TEMPORARY_PREFIX, Directory
from tcjepa.data.config import DataConfig, cache_folder
from tcjepa.data.filter import Clause, conjunction, parse
from tcjepa.keyed import Bits

_CHUNK = 65_536
_LAYOUT = 1  # of the mapped file; part of the fingerprint


class Entry(NamedTuple):
    """Where a sample's bytes are: offsets and sizes [bytes] of two members of one shard."""

    uid: str
    shard: str
    image_offset: int
    image_size: int
    image_format: str
    json_offset: int
    json_size: int


class ShardIndex:
    """The selected rows of a shard directory, in shard and offset order.

    `fingerprint` (16 hex digits) names the selection: it changes with the index file's content, the
    split and the filter, and with nothing else. `digest` is the SHA-256 of the index file.
    Pickles as a path.
    """

    def __init__(
        self, directory: Directory, mapped: Path, fingerprint: str, digest: str, cache_dir: Path
    ) -> None:
        self.directory, self.fingerprint, self.digest = directory, fingerprint, digest
        self.cache_dir = cache_dir
        self._mapped = mapped
        self.table: pa.Table = pa.ipc.open_file(pa.memory_map(str(mapped))).read_all()
        columns = self.table.select(list(Entry._fields))
        self._batches = columns.to_batches()
        lengths = [batch.num_rows for batch in self._batches]
        self._ends = np.cumsum(np.array(lengths, dtype=np.int64))
        self.shards, self.shard_sizes = _runs(self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndex, (
            self.directory, self._mapped, self.fingerprint, self.digest, self.cache_dir
        )  # fmt: skip

    @classmethod
    def open(cls, config: DataConfig) -> ShardIndex:
        """Read the index that `config.shards` names and apply its split and filter.

        Raises `ConfigError` if there is no index, the filter is wrong or no row is left (saying how
        many each clause leaves), and `SchemaError` if the index breaks the contract.
        """
        directory = Directory(config.shards)
        cache_dir = cache_folder(config)
        with _local_index(directory, cache_dir) as path:
            digest = _sha256(path)
            schema = pq.read_schema(path)
            check_index(schema)
            clauses = [
                Clause(f"split == {config.split!r}", pc.field("split") == config.split),
                *(parse(config.filter, schema) if config.filter else []),
            ]
            names = [_LAYOUT, digest, *(clause.text for clause in clauses)]
            fingerprint = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
            mapped = cache_dir / f"index-{fingerprint}.arrow"
            if not mapped.exists():
                _write_selection(path, clauses, mapped, config)
        return cls(directory, mapped, fingerprint, digest, cache_dir)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def entry(self, row: int) -> Entry:
        """Return where the sample of a row is; raises `IndexError`."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of an index of {len(self)}")
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        batch = self._batches[chunk]
        place = row - int(self._ends[chunk]) + batch.num_rows
        return Entry(*(column[place].as_py() for column in batch.columns))

    def uid_bits(self) -> Bits:
        """Return the first 64 bits of every uid, (rows,) uint64."""
        parts = [_hex_words(batch.column(0)) for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)

    def caption_counts(self) -> NDArray[np.int32]:
        """Return the number of captions of every row, (rows,) int32."""
        return np.asarray(self.table.column("n_captions").to_numpy(), dtype=np.int32)


@contextmanager
def _local_index(directory: Directory, cache_dir: Path) -> Iterator[Path]:
    """Yield a local copy of the index file, or the file itself where it is local."""
    try:
        if directory.is_local:
            path = Path(directory.path(INDEX_FILE))
            if not path.is_file():
                raise FileNotFoundError(path)
            yield path
            return
        path = cache_dir / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            directory.fs.get_file(directory.path(INDEX_FILE), str(path))
            yield path
        finally:
            path.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.shards: no {INDEX_FILE} in {directory.url}; build shards with "
            "`python -m pipeline shards`, or name their directory"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_CHUNK):
            yield pa.Table.from_batches([batch])


def _write_selection(path: Path, clauses: list[Clause], mapped: Path, config: DataConfig) -> None:
    """Write the rows that meet every clause as an Arrow file, one chunk in memory at a time."""
    keep = conjunction(clauses)
    temporary = mapped.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    rows = 0
    try:
        with temporary.open("wb") as sink:
            rows = _copy(path, keep, sink)
        if rows == 0:
            raise ConfigError(_explain_empty(path, clauses, config))
        temporary.replace(mapped)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(path: Path, keep: pc.Expression, sink: IO[bytes]) -> int:
    rows = 0
    with pa.ipc.new_file(sink, pq.read_schema(path)) as writer:
        for chunk in _chunks(path):
            kept = chunk.filter(keep).combine_chunks()
            _check_rows(kept)
            writer.write_table(kept)
            rows += kept.num_rows
    return rows


def _check_rows(table: pa.Table) -> None:
    """Refuse an index that would send us to other files, or whose uids cannot be hashed."""
    for name in table.column("shard").unique().to_pylist():
        if "/" in name or "\\" in name or name.startswith("."):
            raise SchemaError(f"shard index names {name!r}, which is no plain file name")
    uid = table.column("uid")
    if not pc.all(
        pc.match_substring_regex(uid, f"^[0-9a-f]{{{UID_LENGTH}}}$"), min_count=0
    ).as_py():
        raise SchemaError(f"shard index has uids that are not {UID_LENGTH} lower-case hex digits")


def _explain_empty(path: Path, clauses: list[Clause], config: DataConfig) -> str:
    """Say how many rows each clause leaves, alone and after those before it."""
    alone = np.zeros(len(clauses), dtype=np.int64)
    after = np.zeros(len(clauses), dtype=np.int64)
    total = 0
    splits: set[str] = set()
    for chunk in _chunks(path):
        total += chunk.num_rows
        splits.update(chunk.column("split").unique().to_pylist())
        left = chunk
        for number, clause in enumerate(clauses):
            alone[number] += chunk.filter(clause.expression).num_rows
            left = left.filter(clause.expression)
            after[number] += left.num_rows
    lines = [
        f"  {clause.text}: {alone[number]} rows by itself, {after[number]} left after it"
        for number, clause in enumerate(clauses)
    ]
    return (
        f"data: no row of {config.shards} is left of {total}:\n" + "\n".join(lines)
        + f"\n  splits present: {', '.join(sorted(splits)) or 'none'}"
    )  # fmt: skip


def _runs(batches: list[pa.RecordBatch]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the shards in order and the rows of each, from runs of equal names."""
    names: list[str] = []
    sizes: list[int] = []
    for batch in batches:
        encoded = pc.run_end_encode(batch.column("shard"))
        ends = [0, *encoded.run_ends.to_pylist()]
        for name, start, end in zip(encoded.values.to_pylist(), ends, ends[1:], strict=False):
            if names and names[-1] == name:
                sizes[-1] += end - start
            else:
                names.append(name)
                sizes.append(end - start)
    return names, np.array(sizes, dtype=np.int64)


def _hex_words(uids: pa.Array) -> Bits:
    """Return the first 16 hex digits of each uid as an integer, (rows,) uint64."""
    _, offsets, data = uids.buffers()
    del offsets  # every uid has the same length, which `_check_rows` made sure of
    text = np.frombuffer(data, dtype=np.uint8, count=UID_LENGTH * (uids.offset + len(uids)))
    digits = text.reshape(-1, UID_LENGTH)[uids.offset :, :16]
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    pairs = (values[:, 0::2] << 4 | values[:, 1::2]).astype(np.uint8)
    return np.ascontiguousarray(pairs).view(">u8").reshape(-1).astype(np.uint64)
