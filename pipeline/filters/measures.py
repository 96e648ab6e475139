"""Measures as Parquet columns: one row per image, or per caption, without the keys of the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.filters.image import COLOUR_BYTES, ImageMeasures
from pipeline.filters.near_texts import SIGNATURE_BYTES, Signatures, signatures
from pipeline.filters.text import CaptionMeasures
from pipeline.filters.word_classes import WordShares

#: Columns of `ImageMeasures`; null where an image could not be measured.
IMAGE_MEASURES = pa.schema(
    [
        pa.field("decode_error", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("pixels", pa.int64()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("entropy", pa.float32()),
        pa.field("grey_share", pa.float32()),
        pa.field("animated", pa.bool_()),
        pa.field("phash", pa.uint64()),
        pa.field("colours", pa.binary(COLOUR_BYTES)),
    ]
)

#: Columns of `CaptionMeasures`, then those of `WordShares`, null where those were not measured;
#: of the others only `language` may be null.
CAPTION_MEASURES = pa.schema(
    [
        pa.field("characters", pa.int64(), nullable=False),
        pa.field("words", pa.int64(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("language_score", pa.float32(), nullable=False),
        pa.field("english_score", pa.float32(), nullable=False),
        pa.field("symbol_share", pa.float32(), nullable=False),
        pa.field("repetition", pa.float32(), nullable=False),
        pa.field("bad_encoding", pa.bool_(), nullable=False),
        pa.field("filename_like", pa.bool_(), nullable=False),
        pa.field("url_like", pa.bool_(), nullable=False),
        pa.field("contact_like", pa.bool_(), nullable=False),
        pa.field("boilerplate", pa.bool_(), nullable=False),
        pa.field("keyword_share", pa.float32(), nullable=False),
        pa.field("caption_key", pa.uint64(), nullable=False),
        pa.field("noun_share", pa.float32()),
        pa.field("verb_share", pa.float32()),
        pa.field("proper_noun_share", pa.float32()),
    ]
)

_PLAIN = frozenset(CaptionMeasures.__dataclass_fields__)

#: Type of a caption's signature (`near_texts`), a column beside the measures: it is much the
#: widest, and only captions that share an image need it.
SIGNATURE = pa.binary(SIGNATURE_BYTES)


def image_table(measures: Sequence[ImageMeasures]) -> pa.Table:
    """Return the measures (n,) as a table of schema `IMAGE_MEASURES`."""
    columns = [
        pa.array([getattr(item, field.name) for item in measures], type=field.type)
        for field in IMAGE_MEASURES
    ]
    return pa.table(columns, schema=IMAGE_MEASURES)


def caption_table(
    measures: Sequence[CaptionMeasures], shares: Sequence[WordShares] | None = None
) -> pa.Table:
    """Return the measures (n,) of captions as a table of schema `CAPTION_MEASURES`."""
    columns = []
    for field in CAPTION_MEASURES:
        measured: Sequence[Any] | None = measures if field.name in _PLAIN else shares
        if measured is None:
            columns.append(pa.nulls(len(measures), field.type))
        else:
            values = [getattr(item, field.name) for item in measured]
            columns.append(pa.array(values, type=field.type))
    return pa.table(columns, schema=CAPTION_MEASURES)


def signature_array(texts: Sequence[str]) -> pa.FixedSizeBinaryArray:
    """Return the signatures of captions (n,) as a column of type `SIGNATURE`."""
    return binary_array(signatures(texts))


def binary_array(values: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Return rows of bytes (n, w) as a column of binary(w)."""
    count, width = values.shape
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.binary(width), count, [None, data])


def byte_rows(column: pa.Array | pa.ChunkedArray) -> Signatures:
    """Return a column of binary(w) as (n, w) uint8; a null's bytes mean nothing."""
    if isinstance(column, pa.ChunkedArray):
        chunks = [byte_rows(chunk) for chunk in column.chunks]
        width = column.type.byte_width
        return np.concatenate(chunks) if chunks else np.zeros((0, width), np.uint8)
    width = column.type.byte_width
    if not len(column):
        return np.zeros((0, width), np.uint8)
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(-1, width)
