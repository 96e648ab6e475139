"""The contract between the pipeline that writes shards and the trainer that reads them.

Needs only pyarrow, so that a GPU node reads shards without Dask, spaCy or img2dataset.

A shard directory holds `<split>-00000.tar …`, `index.parquet` and `manifest.json`. A sample is
three tar members: `<uid>.<jpg|png|webp>`, `<uid>.txt` (best caption) and `<uid>.json` (`Sample`).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, TypedDict

import pyarrow as pa

SCHEMA_VERSION: Final = 1
UID_LENGTH: Final = 32

INDEX_FILE: Final = "index.parquet"
MANIFEST_FILE: Final = "manifest.json"

IMAGE_EXTENSIONS: Final = ("jpg", "png", "webp")
MEMBER_EXTENSIONS: Final = (*IMAGE_EXTENSIONS, "json", "txt")

#: Caption scores in [0, 1], higher is better, null where not computed.
SCORES: Final = ("wording", "language", "alignment", "agreement", "quality")

#: `Caption.source` of a caption that came with the image; others are "<captioner>:<prompt id>".
ALT_TEXT: Final = "alt"

#: Prefix of the index columns that hold scalar `Sample.meta` entries.
META_PREFIX: Final = "meta."


class Caption(TypedDict):
    """One caption of an image, as stored in `Sample.captions`.

    `nouns` and `attributes` are `[start, end)` character spans into `text`, so that caption noise
    can edit words at training time without a language model.
    """

    text: str
    source: str
    scores: dict[str, float | None]
    nouns: list[list[int]]
    attributes: list[list[int]]


class Sample(TypedDict):
    """The JSON member of a sample. `width` and `height` are pixels of the stored image."""

    uid: str
    url: str
    width: int
    height: int
    captions: list[Caption]
    meta: dict[str, Any]


class SchemaError(ValueError):
    """A shard directory that does not follow this contract."""


def is_uid(text: str) -> bool:
    """Return whether a text is written as `uid_of` writes."""
    return re.fullmatch(f"[0-9a-f]{{{UID_LENGTH}}}", text) is not None


def uid_of(image_bytes: bytes) -> str:
    """Return the uid of an image: 32 hex digits of the SHA-256 of its bytes as fetched."""
    return hashlib.sha256(image_bytes).hexdigest()[:UID_LENGTH]


def score_column(score: str, statistic: str) -> str:
    """Return the index column of a score's `best` or `mean` over a sample's captions."""
    return f"{score}_{statistic}"


def index_schema(meta: list[pa.Field]) -> pa.Schema:
    """Return the schema of `index.parquet`: one row per sample, in shard and offset order.

    Offsets and sizes are bytes of the member's *data* in the (uncompressed) tar, so a sample is
    read with one range request per member. `meta` fields must already carry `META_PREFIX`.
    """
    fields = [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("image_offset", pa.int64(), nullable=False),
        pa.field("image_size", pa.int64(), nullable=False),
        pa.field("image_format", pa.string(), nullable=False),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_size", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("n_captions", pa.int32(), nullable=False),
        *(
            pa.field(score_column(score, statistic), pa.float32())
            for score in SCORES
            for statistic in ("best", "mean")
        ),
        pa.field("split", pa.string(), nullable=False),
        *meta,
    ]
    return pa.schema(fields, metadata={b"schema_version": str(SCHEMA_VERSION).encode()})


def check_index(schema: pa.Schema) -> None:
    """Raise `SchemaError` unless `schema` is one this version of the code can read."""
    version = (schema.metadata or {}).get(b"schema_version")
    if version != str(SCHEMA_VERSION).encode():
        found = version.decode() if version else "none"
        raise SchemaError(
            f"shard index has schema version {found}, this code reads {SCHEMA_VERSION}; "
            "rebuild the shards with `python -m pipeline shards`"
        )
    missing = [name for name in index_schema([]).names if name not in schema.names]
    if missing:
        raise SchemaError(f"shard index lacks the columns {', '.join(missing)}")
