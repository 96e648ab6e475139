"""Small shard directories that follow the contract, for tests of the trainer."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.schema import (
    ALT_TEXT,
    INDEX_FILE,
    MANIFEST_FILE,
    META_PREFIX,
    SCHEMA_VERSION,
    SCORES,
    Caption,
    Sample,
    index_schema,
    score_column,
    uid_of,
)

_PIL_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def caption(text: str, source: str = ALT_TEXT, quality: float | None = None) -> Caption:
    """Return a caption of which only the quality is scored."""
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    scores["quality"] = quality
    return {"text": text, "source": source, "scores": scores, "nouns": [], "attributes": []}


def image(number: int, width: int, height: int, image_format: str = "jpg") -> bytes:
    """Return an encoded image, smooth enough for JPEG, different for every number."""
    draws = np.random.Generator(np.random.Philox(key=number)).integers(0, 256, (4, 4, 3))
    small = Image.fromarray(draws.astype(np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(
        buffer, _PIL_NAMES[image_format], quality=90
    )
    return buffer.getvalue()


def two_captions(number: int) -> list[Caption]:
    """Return the default captions of an image: an alt text and a generated one."""
    return [
        caption(f"alt text of image {number}", ALT_TEXT, 0.25),
        caption(f"generated words on {number}", "annotations:short", 0.75),
    ]


def write_shards(
    directory: Path,
    n: int,
    captions: Callable[[int], Sequence[Caption]] = two_captions,
    *,
    shard_size: int = 8,
    size: tuple[int, int] | Callable[[int], tuple[int, int]] = (48, 40),
    image_format: str = "jpg",
    split: str | Callable[[int], str] = "train",
    meta: Callable[[int], dict[str, Any]] | None = None,
    encode: Callable[[int], bytes] | None = None,
    manifest: bool = True,
) -> list[Sample]:
    """Write `n` samples as shards with index and manifest; return the samples in index order.

    `size` is (width, height) [px]; `meta(i)` gives the metadata of sample i, of which scalars enter
    the index; `encode(i)` replaces the generated image bytes. Splits get shards of their own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    split_of = split if callable(split) else lambda number: split
    numbers: dict[str, list[int]] = {}
    for number in range(n):
        numbers.setdefault(split_of(number), []).append(number)
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    shards: list[dict[str, Any]] = []
    for name, members in sorted(numbers.items()):
        for start in range(0, len(members), shard_size):
            shard = f"{name}-{start // shard_size:05d}.tar"
            before = len(rows)
            with tarfile.open(directory / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number in members[start : start + shard_size]:
                    width, height = size(number) if callable(size) else size
                    data = encode(number) if encode else image(number, width, height, image_format)
                    sample: Sample = {
                        "uid": uid_of(str(number).encode()),
                        "url": f"http://127.0.0.1/{number}.{image_format}",
                        "width": width,
                        "height": height,
                        "captions": list(captions(number)),
                        "meta": meta(number) if meta else {},
                    }
                    row = _add(
                        tar,
                        shard=shard,
                        split=name,
                        sample=sample,
                        data=data,
                        image_format=image_format,
                    )
                    rows.append(row)
                    samples.append(sample)
            content = (directory / shard).read_bytes()
            shards.append(
                {
                    "name": shard,
                    "bytes": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "rows": len(rows) - before,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows, _schema(rows)), directory / INDEX_FILE)
    if manifest:
        contents = {"schema_version": SCHEMA_VERSION, "shards": shards}
        (directory / MANIFEST_FILE).write_text(json.dumps(contents))
    return samples


def _add(
    tar: tarfile.TarFile, *, shard: str, split: str, sample: Sample, data: bytes, image_format: str
) -> dict[str, Any]:
    """Add a sample's three members; return its index row."""
    uid = sample["uid"]
    image_offset = _member(tar, f"{uid}.{image_format}", data)
    text = json.dumps(sample).encode()
    json_offset = _member(tar, f"{uid}.json", text)
    texts = [item["text"] for item in sample["captions"]]
    _member(tar, f"{uid}.txt", (texts[0] if texts else "").encode())
    row: dict[str, Any] = {
        "uid": uid,
        "shard": shard,
        "image_offset": image_offset,
        "image_size": len(data),
        "image_format": image_format,
        "json_offset": json_offset,
        "json_size": len(text),
        "width": sample["width"],
        "height": sample["height"],
        "n_captions": len(texts),
        "split": split,
    }
    for score in SCORES:
        found = [item["scores"][score] for item in sample["captions"]]
        known = [value for value in found if value is not None]
        row[score_column(score, "best")] = max(known) if known else None
        row[score_column(score, "mean")] = sum(known) / len(known) if known else None
    scalars = (str, int, float, bool)
    row |= {f"{META_PREFIX}{k}": v for k, v in sample["meta"].items() if isinstance(v, scalars)}
    return row


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a tar member; return the offset of its data [bytes]."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    names = sorted({name for row in rows for name in row if name.startswith(META_PREFIX)})
    columns = {name: [row.get(name) for row in rows] for name in names}
    return index_schema([pa.field(name, pa.array(columns[name]).type) for name in names])
