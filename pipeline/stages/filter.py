"""Stage 2: measure every fetched image and alt text of a part. Judging is `select`'s work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.config import FilterConfig
from pipeline.filters.image import ImageMeasures, examine_image
from pipeline.filters.measures import (
    CAPTION_MEASURES,
    IMAGE_MEASURES,
    SIGNATURE,
    caption_table,
    image_table,
    signature_array,
)
from pipeline.filters.pixels import Image
from pipeline.filters.text import measure_captions
from pipeline.filters.word_classes import word_shares
from pipeline.stages.images import read_images
from pipeline.stages.task import StageReport, Task, tables_of

VERSION = 6

#: The stage's table: `captions` holds a struct of `CAPTION_MEASURES` for each of the row's alt
#: texts, `signatures` its MinHash signature. With features, the column `features` follows.
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("split", pa.string()),
        *IMAGE_MEASURES,
        ("captions", pa.list_(pa.struct(list(CAPTION_MEASURES)))),
        ("signatures", pa.list_(SIGNATURE)),
    ]
)


#: Encoded images held in memory at once: those of a source's own tars may be large.
_SLICE = 256
_READ = ["row", "uid", "split", "reason", "captions", "animated", "raw"]
_READ += ["image_offset", "image_size"]


def measured_settings(config: FilterConfig) -> dict[str, Any]:
    """Return the settings that change a measure: all others are thresholds, applied later."""
    return {
        "max_pixels": config.image.max_pixels,
        "word_classes": config.caption.word_classes,
    }


def measure(task: Task, part: str, config: FilterConfig, features: bool) -> StageReport:
    """Write a row of measures for each fetched row of the part, of schema `SCHEMA`.

    With `features`, which `alignment: linear` needs, the image features are a measure too.
    """
    outcome = tables_of(task.run, "download").read_table(f"{part}.parquet", _READ)
    fetched = outcome.filter(pc.is_null(outcome["reason"]))
    seen: list[tuple[ImageMeasures, Image | None]] = []
    read = 0
    for first in range(0, fetched.num_rows, _SLICE):
        images = read_images(task.run, fetched.slice(first, _SLICE))
        seen += [examine_image(data, config.image.max_pixels) for data in images]
        read += sum(map(len, images))
    measures = image_table([found for found, _ in seen])
    captions, signatures = _caption_lists(
        fetched["captions"].combine_chunks(), config.caption.word_classes
    )
    own = fetched.select(["row", "uid", "split"])
    table = pa.table([*own.columns, *measures.columns, captions, signatures], schema=SCHEMA)
    # What was stored as one still frame may have been fetched as many.
    moving = pc.or_kleene(measures["animated"], fetched["animated"])
    table = table.set_column(table.schema.get_field_index("animated"), "animated", moving)
    if features:
        table = table.append_column("features", _features([small for _, small in seen]))
    task.write(part, table)
    return StageReport(counts={"images": table.num_rows}, bytes=read)


def _features(thumbnails: list[Image | None]) -> pa.Array:
    from pipeline.scorers.alignment_images import feature_column

    return feature_column(thumbnails)


def _caption_lists(captions: pa.ListArray, word_classes: bool) -> tuple[pa.ListArray, pa.ListArray]:
    """Return measures and signatures of each row's captions, in the rows' own list structure."""
    texts = captions.flatten().to_pylist()
    shares = word_shares(texts) if word_classes else None
    measured = caption_table(measure_captions(texts), shares).combine_chunks()
    structs = pa.StructArray.from_arrays(
        [measured[name].combine_chunks() for name in CAPTION_MEASURES.names],
        fields=list(CAPTION_MEASURES),
    )
    lengths = captions.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    measures = pa.ListArray.from_arrays(offsets, structs)
    return measures, pa.ListArray.from_arrays(offsets, signature_array(texts))
