"""Stream the rows of parquet, csv, tsv and jsonl files, plain or compressed, local or remote."""

from __future__ import annotations

import csv
import difflib
import json
import sys
import zlib
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import braceexpand
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.settings import ConfigError

FORMATS: Final = ("parquet", "csv", "tsv", "jsonl")
#: Yielded in place of a row that could not be parsed.
MALFORMED: Final[dict[str, Any]] = {"": "malformed_row"}

_PEEK = 100
#: Longest quoted field. An opening quote that is never closed costs its own line, not the file.
_RECORD_LINES = 1000
_READ_BATCH = 4096
_LOOKUPS = 16  # files looked up at once


def expand(paths: str | Sequence[str], braces: bool = False) -> list[str]:
    """Return the files that paths, URLs and globs name, sorted within each glob.

    With `braces`, lists such as `{00000..00331}` are expanded first. Raises `ConfigError` for a
    path that names no file, or that no installed file system reads.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    if braces:
        given = [path for pattern in given for path in _expand_braces(pattern)]
    # Asked of an object store one by one, the files of a long list would take minutes.
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        return [file for files in pool.map(_matches, given) for file in files]


def _expand_braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(pattern, escape=False))
    except ValueError as error:
        raise ConfigError(f"source.paths: {pattern}: {error}") from error


def _matches(path: str) -> list[str]:
    try:
        matches = sorted(fsspec.open_files(path), key=lambda file: str(file.path))
        files = [str(f.fs.unstrip_protocol(f.path)) for f in matches if f.fs.exists(f.path)]
    except ImportError as error:  # the file system's package is an extra
        raise ConfigError(f"source.paths: {path}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"source.paths: {path} cannot be read: {error}") from error
    if not files:
        raise ConfigError(f"source.paths: {path} names no file")
    return files


def file_mark(path: str) -> str:
    """Return a file's size and modification mark, which change when its content may have."""
    fs, name = fsspec.core.url_to_fs(path)
    try:
        info = fs.info(name)
    except FileNotFoundError:
        return "absent"
    mark = next((info[k] for k in ("ETag", "etag", "mtime", "LastModified") if k in info), "")
    return f"{info.get('size')}|{mark}"


def file_format(path: str, configured: str = "auto") -> str:
    """Return the table format of a file, from the config or its extension (`.gz` ignored)."""
    if configured != "auto":
        return configured
    suffixes = [s for s in PurePosixPath(path).suffixes if s not in (".gz", ".zst", ".bz2", ".xz")]
    guess = (
        {".json": "jsonl", ".ndjson": "jsonl"}.get(suffixes[-1], suffixes[-1][1:])
        if suffixes
        else ""
    )
    if guess not in FORMATS:
        raise ConfigError(f"source.format: cannot tell the format of {path}; set one of {FORMATS}")
    return guess


@dataclass(frozen=True)
class Layout:
    """How a table is written: its format, and what a csv or tsv file cannot say of itself.

    `names` are the columns of a file without a header line. Where fields are not `quoted`, a
    double quote is a character like any other.
    """

    kind: str
    names: tuple[str, ...] | None = None
    quoted: bool = True

    @property
    def delimiter(self) -> str:
        """What separates the fields of a csv or tsv file."""
        return "\t" if self.kind == "tsv" else ","


def check_columns(path: str, layout: Layout, wanted: Sequence[str]) -> None:
    """Raise `ConfigError` if a file lacks a wanted column or names a column twice."""
    kind = layout.kind
    try:
        names = _column_names(path, layout)
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path} cannot be read as {kind}: {error}") from error
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        raise ConfigError(f"{path} has the column {twice[0]!r} more than once; rename one of them")
    for name in wanted:
        if name not in names:
            hint = hint_of(name, names)
            raise ConfigError(f"{path} has no column {name!r}; {hint}it has {', '.join(names)}")
    _check_names(path, layout)


def hint_of(name: str, names: Collection[str]) -> str:
    """Return a question after the name that is most like a missing one; empty if none is."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _check_names(path: str, layout: Layout) -> None:
    """Raise `ConfigError` if a file without a header has another number of fields than names."""
    if layout.names is None:
        return
    if layout.kind not in ("csv", "tsv"):
        raise ConfigError(f"source.columns: {path} is {layout.kind}, which names its own columns")
    with _open_text(path) as file:
        fields: list[str] = next(_reader(file, layout), [])
    if len(fields) != len(layout.names):
        raise ConfigError(
            f"source.columns: names {len(layout.names)} columns, but the first line of {path} has "
            f"{len(fields)} fields"
        )


def read_rows(path: str, layout: Layout, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each row of a file as a dict of the wanted columns, `MALFORMED` for unreadable ones.

    Raises `OSError`, `EOFError` or `zlib.error` for a file that cannot be read to its end.
    """
    if layout.kind == "parquet":
        try:
            yield from _read_parquet(path, columns)
        except (pa.ArrowException, UnicodeDecodeError) as error:  # neither names the file
            raise OSError(f"{path}: {error}") from error
    elif layout.kind == "jsonl":
        yield from _read_jsonl(path, columns)
    else:
        yield from _read_delimited(path, layout, columns)


def _open_text(path: str, newline: str = "") -> Any:
    # Invalid UTF-8 becomes U+FFFD, which the caption filter counts as `bad_encoding`.
    return fsspec.open(
        path, "rt", compression="infer", encoding="utf-8-sig", errors="replace", newline=newline
    )


def _column_names(path: str, layout: Layout) -> list[str]:
    if layout.names is not None:
        return list(layout.names)
    if layout.kind == "parquet":
        with fsspec.open(path, "rb") as file:
            return list(pq.read_schema(file).names)
    with _open_text(path) as file:
        if layout.kind == "jsonl":
            seen: dict[str, None] = {}
            for _, line in zip(range(_PEEK), file, strict=False):
                seen.update(dict.fromkeys(_parse_json(line) or ()))
            return list(seen)
        return next(_reader(file, layout), [])


def _read_parquet(path: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with fsspec.open(path, "rb") as file:
        table = pq.ParquetFile(file)
        for batch in table.iter_batches(batch_size=_READ_BATCH, columns=list(columns)):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:  # a writer may store bytes as strings unchecked
                rows = pa.table(batch).cast(_as_bytes(batch.schema)).to_pylist()
            yield from rows


def _as_bytes(schema: pa.Schema) -> pa.Schema:
    """Return the schema with all strings, however nested, as bytes, which `as_text` decodes."""

    def bytes_of(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return pa.large_binary()
        if pa.types.is_dictionary(kind):
            return bytes_of(kind.value_type)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.large_list(bytes_of(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([inner.with_type(bytes_of(inner.type)) for inner in kind])
        return kind

    return pa.schema([pa.field(field.name, bytes_of(field.type)) for field in schema])


def _read_jsonl(path: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with _open_text(path, newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            row = _parse_json(line)
            yield MALFORMED if row is None else {name: row.get(name) for name in columns}


def _read_delimited(path: str, layout: Layout, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with _open_text(path) as file:
        lines = _Lines(file)
        reader = _reader(lines, layout)
        header: list[str] = list(layout.names or next(reader, []))
        places = [(name, header.index(name)) for name in columns]
        while True:
            lines.record.clear()
            fields: list[str] | None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                fields = None
            if fields == []:
                continue
            if layout.kind == "tsv" and layout.quoted and not _is_meant(fields, lines, header):
                # Writers of tsv often leave quotes as they are: a tab needs none.
                fields = lines.retreat().rstrip("\r\n").split("\t")
            elif fields is None:
                lines.retreat()
            if fields is None or len(fields) != len(header):
                yield MALFORMED
            else:
                yield {name: fields[place] or None for name, place in places}


def _is_meant(fields: list[str] | None, lines: _Lines, header: list[str]) -> bool:
    """Return whether the quotes of a tsv record can have been meant as such.

    A caption that begins with a quotation mark may find a second one some rows further down, and
    what stands between them, tabs and all, would be one field.
    """
    if fields is None or len(fields) != len(header):
        return False
    return len(lines.record) == 1 or not any("\t" in field for field in fields)


def _reader(lines: Any, layout: Layout) -> Any:
    csv.field_size_limit(sys.maxsize)
    if layout.quoted:
        return csv.reader(lines, delimiter=layout.delimiter, strict=True)
    return csv.reader(lines, delimiter=layout.delimiter, strict=True, quoting=csv.QUOTE_NONE)


class _Lines:
    """The lines of a file, with a way back to the second line of a record that went wrong."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file = file
        self._returned: deque[str] = deque()
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.record) >= _RECORD_LINES:
            raise csv.Error("a quoted field spans too many lines")
        line = self._returned.popleft() if self._returned else next(self._file)
        self.record.append(line)
        return line

    def retreat(self) -> str:
        """Return the record's first line; its other lines are read again."""
        first, *others = self.record
        self._returned.extendleft(reversed(others))
        return first


def _parse_json(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
