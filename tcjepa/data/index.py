"""The rows a run trains on: index.parquet after split and filter, mapped rather than loaded.

The selection is written once per node as an Arrow file in the cache folder and memory-mapped, so
that ranks and loader workers share one copy and a hundred million rows cost page cache, not RAM.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.schema import INDEX_FILE, UID_LENGTH, SchemaError, check_index
from pipeline.settings import ConfigError
from pipeline.storage import Directory
from tcjepa.data.config import DataConfig, cache_folder
from tcjepa.data.emptiness import explain_empty
from tcjepa.data.filter import Clause, conjunction, parse
from tcjepa.data.remote import Access, Remote
from tcjepa.data.staging import locked, room_for, staged, sweep, temporary
from tcjepa.data.verify import (
    Expected,
    Verify,
    check_hashes,
    check_listed,
    check_local,
    check_there,
    keep_expected,
    load_expected,
    read_expected,
)
from tcjepa.keyed import Bits

_CHUNK = 65_536
_LAYOUT = 3  # of the mapped files and what filters mean; part of their names


class Entry(NamedTuple):
    """Where a sample's bytes are: offsets and sizes [bytes] of two members of one shard."""

    uid: str
    shard: str
    image_offset: int
    image_size: int
    image_format: str
    json_offset: int
    json_size: int


class Opened(NamedTuple):
    """What a `ShardIndex` needs besides its directory; paths are of files in the cache folder."""

    mapped: Path
    spans: Path
    expected: Path
    fingerprint: str
    digest: str
    cache_dir: Path
    access: Access


class ShardIndex:
    """The selected rows of a shard directory, in shard and offset order.

    `fingerprint` (16 hex digits) names the selection: it changes with the index file's content, the
    split and the filter, and with nothing else. `digest` is the SHA-256 of the index file. `shards`
    are the files in order, `shard_sizes` (shards,) the rows of each and `shard_ends` (shards,) the
    byte after its last sample. Pickles as paths.
    """

    def __init__(self, directory: Directory, opened: Opened) -> None:
        self.directory, self._opened = directory, opened
        self.fingerprint, self.digest = opened.fingerprint, opened.digest
        self.cache_dir, self.access = opened.cache_dir, opened.access
        self.table: pa.Table = _map(opened.mapped)
        columns = self.table.select(list(Entry._fields))
        self._batches = columns.to_batches()
        lengths = [batch.num_rows for batch in self._batches]
        self._starts = [0, *accumulate(lengths)][:-1]
        self._rows: int = sum(lengths)
        # Numbers by numpy: an Arrow scalar takes ten times as long.
        self._readers = [[_item(column) for column in batch.columns] for batch in self._batches]
        spans = _map(opened.spans)
        self.shards: list[str] = spans.column("shard").to_pylist()
        self.shard_sizes: NDArray[np.int64] = spans.column("rows").to_numpy()
        self.shard_ends: NDArray[np.int64] = spans.column("end").to_numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndex, (self.directory, self._opened)

    @classmethod
    def open(cls, config: DataConfig) -> ShardIndex:
        """Read the index that `config.shards` names and apply its split and filter.

        Raises `ConfigError` if there is no index, the filter is wrong or no row is left (saying how
        many each clause leaves), `SchemaError` if the index breaks the contract, and, as
        `config.verify` asks, `DamagedShardError` for shards that are not those of the index.
        """
        directory = Directory(config.shards)
        cache_dir = cache_folder(config)
        sweep(cache_dir)
        access = Access(config.fetch_ranges, config.timeout_s)
        remote = None if directory.is_local else Remote(directory, access)
        # One process of the node at a time: the first writes, the others find its file.
        with (
            locked(cache_dir / "index.lock"),
            _local_index(directory, remote, cache_dir) as path,
        ):
            digest = _sha256(path)
            schema = pq.read_schema(path)
            check_index(schema)
            clauses = [
                Clause(f"split == {config.split!r}", pc.field("split") == config.split),
                *(parse(config.filter, schema) if config.filter else []),
            ]
            names = [digest, *(clause.text for clause in clauses)]
            fingerprint = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
            mapped = cache_dir / f"index-{_LAYOUT}-{fingerprint}.arrow"
            spans = mapped.with_suffix(".spans")
            if not mapped.exists():
                _write_selection(path, clauses, mapped, spans, config)
        expected = read_expected(directory, remote) if config.verify != "none" else {}
        kept = keep_expected(expected, cache_dir)
        index = cls(directory, Opened(mapped, spans, kept, fingerprint, digest, cache_dir, access))
        index._verify(config.verify, expected)
        return index

    def _verify(self, how: Verify, expected: dict[str, Expected]) -> None:
        if how == "none":
            return
        if how == "sha256":
            check_there(self.directory, expected)
        check_listed(self.directory, self.shards, expected)
        if self.directory.is_local:
            needed = dict(zip(self.shards, self.shard_ends.tolist(), strict=True))
            check_local(self.directory, needed, expected)
            if how == "sha256":
                check_hashes(self.directory, self.shards, expected, self.cache_dir)

    def __len__(self) -> int:
        return self._rows

    def expected(self) -> dict[str, Expected]:
        """Return what the manifest said of each shard when the index was opened; maybe nothing."""
        return load_expected(self._opened.expected)

    def entry(self, row: int) -> Entry:
        """Return where the sample of a row is; raises `IndexError`."""
        chunk = bisect_right(self._starts, row) - 1
        if chunk < 0 or row >= self._rows:
            raise IndexError(f"row {row} of an index of {self._rows}")
        place = row - self._starts[chunk]
        return Entry(*[read(place) for read in self._readers[chunk]])

    def uid_bits(self) -> Bits:
        """Return the first 64 bits of every uid, (rows,) uint64."""
        parts = [_hex_words(batch.column(0)) for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)

    def caption_counts(self) -> NDArray[np.int32]:
        """Return the number of captions of every row, (rows,) int32."""
        return np.asarray(self.table.column("n_captions").to_numpy(), dtype=np.int32)


@contextmanager
def _local_index(directory: Directory, remote: Remote | None, cache_dir: Path) -> Iterator[Path]:
    """Yield a local copy of the index file, or the file itself where it is local."""
    if remote is None:
        path = Path(directory.path(INDEX_FILE))
        if not path.is_file():
            raise _no_index(directory)
        yield path
        return
    with temporary(cache_dir) as sink:
        try:
            remote.retried(INDEX_FILE, lambda: _copy_index(remote, sink, cache_dir))
        except FileNotFoundError as error:
            raise _no_index(directory) from error
        yield Path(sink.name)


def _no_index(directory: Directory) -> ConfigError:
    return ConfigError(
        f"data.shards: no {INDEX_FILE} in {directory.url}; build shards with "
        "`python -m pipeline shards`, or name their directory"
    )


def _copy_index(remote: Remote, sink: IO[bytes], cache_dir: Path) -> None:
    sink.seek(0)
    sink.truncate()
    with room_for(cache_dir / INDEX_FILE):
        for block in remote.blocks(INDEX_FILE, remote.size(INDEX_FILE)):
            sink.write(block)
        sink.flush()


def _item(column: pa.Array) -> Callable[[int], Any]:
    """Return what reads a value of a column as a Python object."""
    if pa.types.is_integer(column.type):
        return column.to_numpy().item  # type: ignore[no-any-return]
    return lambda place: column[place].as_py()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_CHUNK):
            yield pa.Table.from_batches([batch])


def _write_selection(
    path: Path, clauses: list[Clause], mapped: Path, spans: Path, config: DataConfig
) -> None:
    """Write the rows that meet every clause as an Arrow file, one chunk in memory at a time.

    Their spans come first, so whoever finds the rows finds the spans as well.
    """
    with staged(mapped) as sink, room_for(mapped):
        found = _copy(path, conjunction(clauses), sink)
        if found.num_rows == 0:
            raise ConfigError(explain_empty(_chunks(path), clauses, config))
        with staged(spans) as beside, pa.ipc.new_file(beside, found.schema) as writer:
            writer.write_table(found)


def _copy(path: Path, keep: pc.Expression, sink: IO[bytes]) -> pa.Table:
    """Copy the rows that are kept; return (shard, rows, end) of each run of rows of one shard."""
    names: list[str] = []
    rows: list[int] = []
    ends: list[int] = []
    with pa.ipc.new_file(sink, pq.read_schema(path)) as writer:
        for chunk in _chunks(path):
            kept = chunk.filter(keep).combine_chunks()
            _check_rows(kept)
            writer.write_table(kept)
            for name, count, end in _runs(kept):
                if names and names[-1] == name:
                    rows[-1] += count
                    ends[-1] = max(ends[-1], end)
                else:
                    names.append(name)
                    rows.append(count)
                    ends.append(end)
    columns = [names, pa.array(rows, pa.int64()), pa.array(ends, pa.int64())]
    return pa.table(columns, names=["shard", "rows", "end"])


def _runs(table: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield (shard, rows, byte after its last sample) for each run of rows of one shard."""
    for batch in table.to_batches():
        image, text = (
            np.add(batch.column(f"{part}_offset"), batch.column(f"{part}_size"))
            for part in ("image", "json")
        )
        encoded = pc.run_end_encode(batch.column("shard"))
        stops = [0, *encoded.run_ends.to_pylist()]
        for name, start, stop in zip(encoded.values.to_pylist(), stops, stops[1:], strict=False):
            yield name, stop - start, int(np.maximum(image, text)[start:stop].max())


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


def _map(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _hex_words(uids: pa.Array) -> Bits:
    """Return the first 16 hex digits of each uid as an integer, (rows,) uint64."""
    _, offsets, data = uids.buffers()
    del offsets  # every uid has the same length, which `_check_rows` made sure of
    text = np.frombuffer(data, dtype=np.uint8, count=UID_LENGTH * (uids.offset + len(uids)))
    digits = text.reshape(-1, UID_LENGTH)[uids.offset :, :16]
    values = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0"))
    pairs = (values[:, 0::2] << 4 | values[:, 1::2]).astype(np.uint8)
    return np.ascontiguousarray(pairs).view(">u8").reshape(-1).astype(np.uint64)
