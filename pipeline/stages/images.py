"""Stored images, read where they lie: in the run's own tars, or in tars that the source named."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Final

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import merge_offset_ranges

from pipeline.storage import Directory

RAW = "raw"
#: Of remote tars, bytes between two wanted images that are read along, in place of a further
#: request; and the most that one request asks for, so that several are under way at once.
_GAP: Final = 2**16
_BLOCK: Final = 2**23


def read_images(run: Directory, rows: pa.Table) -> list[bytes]:
    """Return the images of `rows` (n,), in order.

    `rows` has the columns `raw`, `image_offset` and `image_size` of the download table: the tar's
    name inside the run's `raw/` (or its full path or URL, if the source brought the tar along) and
    the place of the image's bytes in it. A local tar is opened once; of a remote one little more
    than the images is fetched.
    """
    places = zip(
        rows["raw"].to_pylist(),
        rows["image_offset"].to_pylist(),
        rows["image_size"].to_pylist(),
        strict=True,
    )
    by_tar: dict[str, list[tuple[int, int, int]]] = {}
    for number, (tar, offset, size) in enumerate(places):
        by_tar.setdefault(tar, []).append((offset, size, number))
    images = [b""] * len(rows)
    for tar, wanted in by_tar.items():
        fs, path = _place(run, tar)
        read = _read_local if isinstance(fs, LocalFileSystem) else _read_remote
        spans = [(offset, size) for offset, size, _ in wanted]
        for (_, _, number), image in zip(wanted, read(fs, path, spans), strict=True):
            images[number] = image
    return images


def _place(run: Directory, tar: str) -> tuple[Any, str]:
    if "/" in tar:
        return fsspec.core.url_to_fs(tar)  # type: ignore[no-any-return]
    raw = run / RAW
    return raw.fs, raw.path(tar)


def _read_local(fs: Any, path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    found = {}
    with fs.open(path, "rb") as file:
        for offset, size in sorted(spans):
            file.seek(offset)
            found[offset, size] = file.read(size)
    return [found[span] for span in spans]


def _read_remote(fs: Any, path: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return bytes by ranges: a file opened there reads megabytes ahead at every seek."""
    paths, starts, ends = merge_offset_ranges(
        [path] * len(spans),
        [offset for offset, _ in spans],
        [offset + size for offset, size in spans],
        max_gap=_GAP,
        max_block=_BLOCK,
    )
    blocks = fs.cat_ranges(paths, starts, ends, on_error="raise")
    found = []
    for offset, size in spans:
        place = bisect_right(starts, offset) - 1
        begin = offset - starts[place]
        found.append(bytes(blocks[place][begin : begin + size]))
    return found
