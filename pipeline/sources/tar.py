"""Walk tars that cannot be trusted: cut short, damaged, or made to hurt their reader.

Unlike `tarfile`, nothing raises, no field makes us read more than `_MAX_EXTENDED` bytes, and the
walk goes on at the next sound header after a damaged one. The caller reads the members' data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

BLOCK: Final = 512
#: Longest extended header (a long name, or pax records) that is read [bytes].
_MAX_EXTENDED: Final = 1 << 20
_SCAN: Final = 1 << 20
_REMOTE_BLOCK: Final = 4 << 20

# webdataset's rule: the extension starts at the first dot of the last path component.
_KEY = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)
_REGULAR, _PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"07\0", b"x", b"g", b"L", b"K"
# Links, devices, directories and pipes have no data, whatever their size field says.
_WITHOUT_DATA = b"123456"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: `size` bytes at `offset`, `whole` if the tar does not end before."""

    name: str
    offset: int
    size: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes at `offset` that should be a header and are none."""

    offset: int


@dataclass
class Sample:
    """Members that follow each other and share a key, by extension, or a damaged place.

    `error` is a key of `ROW_ERRORS`, None for a sound sample; a damaged place has no key.
    """

    key: str | None
    members: dict[str, Member] = field(default_factory=dict)
    error: str | None = None


def open_tar(path: str) -> Any:
    """Return a tar at a local path or URL as a seekable binary file that reads ahead.

    Raises `FileNotFoundError` that names the tar.
    """
    fs, name = fsspec.core.url_to_fs(path)
    ahead = {"block_size": _REMOTE_BLOCK, "cache_type": "readahead"}
    try:
        # On disk, reading ahead would read what the walk then skips.
        return fs.open(name, "rb", **({} if isinstance(fs, LocalFileSystem) else ahead))
    except FileNotFoundError:
        raise FileNotFoundError(f"source.paths: the tar {path} is gone") from None


def samples(file: IO[bytes]) -> Iterator[Sample]:
    """Yield the samples of a tar in order, as webdataset groups them, and its damaged places.

    A key that comes back later in the tar, or has the same extension twice, is `duplicate_key`.
    """
    seen: set[str] = set()
    current: Sample | None = None
    damaged = 0
    for member in members(file):
        if isinstance(member, Damage):
            damaged += 1
            continue
        key, extension = split_name(member.name)
        if key is None:
            continue
        if current is None or key != current.key or extension in current.members:
            yield from _finished(current, damaged)
            damaged = 0
            current = Sample(key, error=_name_error(key, seen))
            seen.add(key)
        current.members[extension] = member
        if not member.whole:
            current.error = "damaged_tar"
    yield from _finished(current, damaged)


def _finished(sample: Sample | None, damaged: int) -> Iterator[Sample]:
    if sample is not None:
        yield sample
    for _ in range(damaged):
        yield Sample(None, error="damaged_tar")


def _name_error(key: str, seen: set[str]) -> str | None:
    if key.startswith("/") or ".." in key.split("/") or not key.isprintable():
        return "bad_name"
    return "duplicate_key" if key in seen else None


def split_name(name: str) -> tuple[str | None, str]:
    """Return a member's webdataset key and lower-case extension; no key if it is no sample's."""
    match = _KEY.match(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else (None, "")


def members(file: IO[bytes]) -> Iterator[Member | Damage]:
    """Yield the regular files of a tar in order, and the places where no header can be read."""
    end = file.seek(0, 2)
    place = 0
    name: str | None = None  # what an extended header said of the next member
    size: int | None = None
    if end == 0:
        yield Damage(0)
    while place < end:
        header = _parse(_read(file, place, BLOCK))
        if header is None:
            found, blank = _next_header(file, place, end)
            if not blank:
                yield Damage(place)
            place, name, size = found, None, None
            continue
        data = place + BLOCK
        if header.kind in _PAX + _PAX_GLOBAL + _LONG_NAME + _LONG_LINK:
            if header.size > _MAX_EXTENDED:
                yield Damage(place)
            elif header.kind == _LONG_NAME:
                name = _text(_read(file, data, header.size))
            elif header.kind == _PAX:
                records = _pax_records(_read(file, data, header.size))
                name = _text(records[b"path"]) if b"path" in records else name
                size = _decimal(records.get(b"size"))
            place = data + _padded(header.size)
            continue
        length = header.size if size is None else size
        if header.kind in _REGULAR and not (name or header.name).endswith("/"):
            yield Member(name or header.name, data, length, data + length <= end)
        place = data + (0 if header.kind in _WITHOUT_DATA else _padded(length))
        name = size = None


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    kind: bytes
    size: int


def _parse(block: bytes) -> _Header | None:
    """Return a header block's fields, or None if its checksum or size is wrong."""
    if len(block) < BLOCK:
        return None
    checksum, size = _number(block[148:156]), _number(block[124:136])
    blanked = block[:148] + b" " * 8 + block[156:]
    if checksum is None or size is None:
        return None
    if checksum != sum(blanked) and checksum != _signed_sum(blanked):
        return None
    name = _text(block[:100])
    # GNU's own format (magic `ustar  `) keeps other things where POSIX has the name's prefix.
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, block[156:157], size)


def _signed_sum(block: bytes) -> int:
    # Some old writers summed signed characters.
    return sum(block) - 256 * sum(byte > 127 for byte in block)


def _number(digits: bytes) -> int | None:
    """Return an octal field, or GNU's base-256 for large values; None if it is neither."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:])
    try:
        return int(digits.split(b"\0", 1)[0].strip() or b"0", 8) if digits[0] < 0x80 else None
    except ValueError:
        return None


def _decimal(digits: bytes | None) -> int | None:
    return int(digits) if digits and digits.isdigit() and len(digits) < 20 else None


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Return the `length key=value` records of a pax header up to the first broken one."""
    records: dict[bytes, bytes] = {}
    while data:
        length, space, _ = data.partition(b" ")
        count = _decimal(length)
        if not space or not count or not len(length) < count <= len(data):
            break
        key, _, value = data[len(length) + 1 : count - 1].partition(b"=")
        records[key] = value
        data = data[count:]
    return records


def _next_header(file: IO[bytes], place: int, end: int) -> tuple[int, bool]:
    """Return where the next sound header starts (or `end`), and whether only zeros lie before it.

    A tar ends with blocks of zeros, and concatenated tars have them in the middle.
    """
    blank = True
    while place < end:
        chunk = _read(file, place, _SCAN)
        if not chunk:
            break
        start = chunk.find(b"ustar")
        while start >= 0:
            block = start - 257
            if block >= 0 and block % BLOCK == 0 and _parse(chunk[block : block + BLOCK]):
                return place + block, blank and not any(chunk[:block])
            start = chunk.find(b"ustar", start + 1)
        blank = blank and not any(chunk)
        place += len(chunk)
    return end, blank


def _read(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK
