"""Stored images, read where they lie: in the run's own tars, or in tars that the source named."""

from __future__ import annotations

import io
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.storage import Directory

RAW = "raw"


def read_images(run: Directory, rows: pa.Table) -> list[bytes]:
    """Return the images of `rows` (n,), in order.

    `rows` has the columns `raw`, `image_offset` and `image_size` of the download table: the tar's
    name inside the run's `raw/` (or its full path or URL, if the source brought the tar along) and
    the place of the image's bytes in it. Every tar is opened once.
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
        with io.BufferedReader(_open(run, tar)) as file:
            for offset, size, number in sorted(wanted):
                file.seek(offset)
                images[number] = file.read(size)
    return images


def _open(run: Directory, tar: str) -> Any:
    if "/" in tar:
        return fsspec.open(tar, "rb").open()
    raw = run / RAW
    return raw.fs.open(raw.path(tar), "rb")
