"""Bytes of samples out of shards, by byte range."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, cast

from pipeline.schema import Sample
from tcjepa.data.cache import ShardCache, ShardUnavailableError
from tcjepa.data.decode import SampleError
from tcjepa.data.index import Entry, ShardIndex

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
        directory = index.directory
        self.cache = (
            None
            if directory.is_local
            else ShardCache(directory, index.digest, index.cache_dir, cache_bytes)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self._index, self._cache_bytes)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; a later read opens them again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def image_and_sample(self, row: int) -> tuple[bytes, str, Sample]:
        """Return a row's (image bytes, image format, json member).

        Raises `SampleError` for truncated or mismatched data and `ShardUnavailableError` if the
        shard as a whole is missing.
        """
        entry = self._index.entry(row)
        start = min(entry.image_offset, entry.json_offset)
        end = max(entry.image_offset + entry.image_size, entry.json_offset + entry.json_size)
        if end - start <= entry.image_size + entry.json_size + _GAP:
            span = self._read(entry.shard, start, end - start)
            image = span[entry.image_offset - start :][: entry.image_size]
            text = span[entry.json_offset - start :][: entry.json_size]
        else:
            image = self._read(entry.shard, entry.image_offset, entry.image_size)
            text = self._read(entry.shard, entry.json_offset, entry.json_size)
        return image, entry.image_format, _parse(text, entry)

    def sample(self, row: int) -> Sample:
        """Return a row's json member alone; raises as `image_and_sample`.

        A remote shard that is not cached is not fetched for it: noise asks for single captions all
        over the data set, and whole shards would flood the cache.
        """
        entry = self._index.entry(row)
        if self.cache is not None and self.cache.cached(entry.shard) is None:
            end = entry.json_offset + entry.json_size
            text = self._index.directory.read_range(entry.shard, entry.json_offset, end)
            if len(text) > entry.json_size:  # an HTTP server that ignores ranges sent the shard
                text = self._read(entry.shard, entry.json_offset, entry.json_size)
        else:
            text = self._read(entry.shard, entry.json_offset, entry.json_size)
        return _parse(text, entry)

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise SampleError(f"{shard} ends before byte {offset + size}")
        return data

    def _descriptor(self, shard: str) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            descriptor = self._open(shard)
            if len(self._descriptors) >= _DESCRIPTORS:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[shard] = descriptor
        self._descriptors.move_to_end(shard)
        return descriptor

    def _open(self, shard: str) -> int:
        directory = self._index.directory
        if self.cache is None:
            try:
                return os.open(directory.path(shard), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise ShardUnavailableError(
                    f"shard {shard} is in the index but not in {directory.url}"
                ) from error
        while True:  # the copy may be evicted between fetching and opening
            path: Path = self.cache.fetch(shard)
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue


def _parse(text: bytes, entry: Entry) -> Sample:
    try:
        sample = json.loads(text)
    except ValueError as error:  # covers bad UTF-8 as well
        raise SampleError(f"json member of {entry.uid} is broken: {error}"[:200]) from error
    if not isinstance(sample, dict) or sample.get("uid") != entry.uid:
        raise SampleError(f"the bytes at {entry.shard}:{entry.json_offset} are another sample's")
    if not isinstance(sample.get("captions"), list):
        raise SampleError(f"json member of {entry.uid} has no list of captions")
    return cast(Sample, sample)
