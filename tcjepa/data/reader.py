"""Bytes of samples out of shards, by byte range."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any, Final, cast

import orjson

from pipeline.schema import Sample
from tcjepa.data.cache import ShardCache
from tcjepa.data.decode import SampleError
from tcjepa.data.errors import DamagedShardError, ShardUnavailableError
from tcjepa.data.index import Entry, ShardIndex
from tcjepa.data.memory import ReadMemory
from tcjepa.data.remote import Remote

_DESCRIPTORS: Final = 64
#: Bytes between the image and the json member that are still cheaper to read than to skip: two tar
#: headers, padding and the best caption lie between them.
_GAP: Final = 16_384


class ShardReader:
    """Reads the samples of an index: local shards in place, remote ones through a `ShardCache`.

    Uses `os.pread`, which shares no file position, so a reader may be used on both sides of a fork;
    it is not made for several threads. Pickles without its descriptors.
    """

    def __init__(self, index: ShardIndex, cache_bytes: int) -> None:
        self._index, self._cache_bytes = index, cache_bytes
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        directory, expected = index.directory, index.expected()
        self._sizes = {shard: item.size for shard, item in expected.items()}
        self.cache = (
            None
            if directory.is_local
            else ShardCache(
                Remote(directory, index.access),
                index.digest,
                index.cache_dir,
                cache_bytes,
                expected,
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self._index, self._cache_bytes)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def image_and_sample(
        self, row: int, memory: ReadMemory | None = None
    ) -> tuple[memoryview, str, Sample]:
        """Return a row's (image bytes, image format, json member); the bytes are not copied again.

        With `memory` they lie in it.

        Raises `SampleError` for truncated data and for an index that disagrees with the tar (the
        header before the image and the uid inside the json member must be this sample's), and
        `ShardUnavailableError` if the shard as a whole is missing or another one than before.
        """
        entry = self._index.entry(row)
        header = entry.image_offset - BLOCKSIZE
        start = max(0, min(header, entry.json_offset))
        end = max(entry.image_offset + entry.image_size, entry.json_offset + entry.json_size)
        if end - start <= entry.image_size + entry.json_size + _GAP:
            span = self._read(entry.shard, start, end - start, memory)
            at, text_at = entry.image_offset - start, entry.json_offset - start
            before = span[max(0, header - start) : at]
            image = span[at : at + entry.image_size]
            text = span[text_at : text_at + entry.json_size]
        else:
            size = entry.image_size + BLOCKSIZE
            span = self._read(entry.shard, max(0, header), size, memory)
            before, image = span[:BLOCKSIZE], span[BLOCKSIZE:]
            text = self._read(entry.shard, entry.json_offset, entry.json_size, memory)
        _check_header(bytes(before), entry)
        return image, entry.image_format, _parse(text, entry)

    def sample(self, row: int) -> Sample:
        """Return a row's json member alone; raises as `image_and_sample`.

        A remote shard that is not cached is not fetched for it: noise asks for single captions all
        over the data set, and whole shards would flood the cache.
        """
        entry = self._index.entry(row)
        if self.cache is None:
            text: bytes | memoryview = self._read(entry.shard, entry.json_offset, entry.json_size)
        else:
            end = entry.json_offset + entry.json_size
            text = self.cache.read_range(entry.shard, entry.json_offset, end)
        return _parse(text, entry)

    def _read(
        self, shard: str, offset: int, size: int, memory: ReadMemory | None = None
    ) -> memoryview:
        data = memoryview(bytearray(size)) if memory is None else memory.take(size)
        if os.preadv(self._descriptor(shard), [data], offset) != size:
            raise SampleError(f"{shard} ends before byte {offset + size}")
        return data

    def _descriptor(self, shard: str) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            self._close_evicted()
            descriptor = self._open(shard)
            if len(self._descriptors) >= _DESCRIPTORS:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[shard] = descriptor
        self._descriptors.move_to_end(shard)
        return descriptor

    def _close_evicted(self) -> None:
        """Close what the cache has dropped: until then the system keeps its bytes on the disk."""
        if self.cache is None:
            return
        for shard, descriptor in list(self._descriptors.items()):
            if os.fstat(descriptor).st_nlink == 0:
                os.close(self._descriptors.pop(shard))

    def _open(self, shard: str) -> int:
        if self.cache is None:
            return self._open_local(shard)
        while True:  # the copy may be evicted between fetching and opening
            path: Path = self.cache.fetch(shard)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue

    def _open_local(self, shard: str) -> int:
        directory = self._index.directory
        try:
            descriptor = os.open(directory.path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardUnavailableError(
                f"shard {shard} is in the index but not in {directory.url}: {error.strerror}"
            ) from error
        found, size = os.fstat(descriptor).st_size, self._sizes.get(shard)
        if size is not None and found != size:
            os.close(descriptor)
            raise DamagedShardError(
                f"shard {shard} of {directory.url} was replaced during the run: {found} bytes, the "
                f"manifest says {size}. Stop what writes there, and start again"
            )
        return descriptor


def _check_header(header: bytes, entry: Entry) -> None:
    """Compare the tar header before an image with the index; raises `SampleError`.

    An image carries no uid. Without this look, an index of another packing of the same shards would
    give each caption a wrong image wherever sizes happen to fit.
    """
    name = header[:100].rstrip(b"\0").rpartition(b"/")[2]
    try:
        size = int(header[124:136].strip(b" \0"), 8)
    except ValueError:
        size = -1
    if name != f"{entry.uid}.{entry.image_format}".encode() or size != entry.image_size:
        raise SampleError(
            f"the tar header before {entry.shard}:{entry.image_offset} is not of image {entry.uid}"
        )


def _parse(text: bytes | memoryview, entry: Entry) -> Sample:
    try:
        sample = orjson.loads(text)
    except ValueError as error:  # covers bad UTF-8 as well
        raise SampleError(f"json member of {entry.uid} is broken: {error}"[:200]) from error
    if not isinstance(sample, dict) or sample.get("uid") != entry.uid:
        raise SampleError(f"the bytes at {entry.shard}:{entry.json_offset} are another sample's")
    if not isinstance(sample.get("captions"), list):
        raise SampleError(f"json member of {entry.uid} has no list of captions")
    return cast(Sample, sample)
