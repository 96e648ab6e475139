"""Measures as Parquet columns: one row per image, or per caption, without the keys of the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.filters.image import COLOUR_BYTES, ImageMeasures
from pipeline.filters.text import CaptionMeasures

#: Columns of `ImageMeasures`; null where an image could not be measured.
IMAGE_MEASURES = pa.schema(
    [
        pa.field("decode_error", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("pixels", pa.int64()),
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("phash", pa.uint64()),
        pa.field("colours", pa.binary(COLOUR_BYTES)),
    ]
)

#: Columns of `CaptionMeasures`; only `language` may be null.
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
        pa.field("boilerplate", pa.bool_(), nullable=False),
        pa.field("caption_key", pa.uint64(), nullable=False),
    ]
)


def image_table(measures: Sequence[ImageMeasures]) -> pa.Table:
    """Return the measures (n,) as a table of schema `IMAGE_MEASURES`."""
    return _table(measures, IMAGE_MEASURES)


def caption_table(measures: Sequence[CaptionMeasures]) -> pa.Table:
    """Return the measures (n,) as a table of schema `CAPTION_MEASURES`."""
    return _table(measures, CAPTION_MEASURES)


def colour_array(colours: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return the column `colours` without nulls as (n, 48) uint8, for `near_duplicates`."""
    values = b"".join(colours.to_pylist())
    return np.frombuffer(values, np.uint8).reshape(-1, COLOUR_BYTES)


def _table(measures: Sequence[Any], schema: pa.Schema) -> pa.Table:
    columns = [
        pa.array([getattr(item, field.name) for item in measures], type=field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
