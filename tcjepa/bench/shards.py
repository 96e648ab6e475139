"""Shards that follow the contract, for a bench to read: photographs with four captions each."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import (
    ALT_TEXT,
    INDEX_FILE,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    SCORES,
    Caption,
    Sample,
    index_schema,
    score_column,
    uid_of,
)
from tcjepa import keyed

_CAPTIONS = 4
_STATISTICS = ("best", "mean")
#: What captions are made of.
WORDS = (
    "a", "the", "two", "small", "large", "red", "green", "wooden", "striped", "old", "bright",
    "round", "dog", "house", "tree", "boat", "child", "cat", "window", "street", "table", "river",
    "stands", "lies", "runs", "holds", "beside", "under", "behind", "near", "in", "on", "with",
    "and",
)  # fmt: skip


def write_shards(folder: Path, images: Sequence[bytes], side: int, samples: int, size: int) -> None:
    """Write `samples` samples in shards of `size`, repeating the images (side x side JPEGs)."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for start in range(0, samples, size):
        name = f"train-{start // size:05d}.tar"
        numbers = range(start, min(start + size, samples))
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                rows.append(_add(tar, name, number, images[number % len(images)], side))
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        shards.append({"name": name, "bytes": len(content), "sha256": digest, "rows": len(numbers)})
    pq.write_table(pa.Table.from_pylist(rows, index_schema([])), folder / INDEX_FILE)
    manifest = {"schema_version": SCHEMA_VERSION, "shards": shards}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _add(tar: tarfile.TarFile, shard: str, number: int, data: bytes, side: int) -> dict[str, Any]:
    sample: Sample = {
        "uid": uid_of(str(number).encode()),
        "url": f"bench:{number}",
        "width": side,
        "height": side,
        "captions": [_caption(number, place) for place in range(_CAPTIONS)],
        "meta": {},
    }
    text = json.dumps(sample).encode()
    offsets = [
        _member(tar, f"{sample['uid']}.{extension}", content)
        for extension, content in (
            ("jpg", data),
            ("json", text),
            ("txt", sample["captions"][0]["text"].encode()),
        )
    ]
    return {
        "uid": sample["uid"],
        "shard": shard,
        "image_offset": offsets[0],
        "image_size": len(data),
        "image_format": "jpg",
        "json_offset": offsets[1],
        "json_size": len(text),
        "width": side,
        "height": side,
        "n_captions": _CAPTIONS,
        "split": "train",
        **{score_column(score, statistic): 0.5 for score in SCORES for statistic in _STATISTICS},
    }


def _caption(number: int, place: int) -> Caption:
    draws = keyed.bits(keyed.key("caption", number, place), 13).tolist()
    words = [WORDS[draw % len(WORDS)] for draw in draws[: 6 + draws[-1] % 7]]
    return {
        "text": " ".join(words),
        "source": ALT_TEXT if place == 0 else "bench",
        "scores": dict.fromkeys(SCORES, 0.5),
        "nouns": [],
        "attributes": [],
    }


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset
