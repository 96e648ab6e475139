"""Stage 2: measure every fetched image and alt text of a part. Judging is `select`'s work."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.filters.config import FilterConfig
from pipeline.filters.image import measure_image
from pipeline.filters.measures import CAPTION_MEASURES, IMAGE_MEASURES, caption_table, image_table
from pipeline.filters.text import measure_captions
from pipeline.stages.images import read_images
from pipeline.stages.task import StageReport, Task, tables_of

VERSION = 2

#: Columns of the stage's table before the image measures. `captions` holds a struct of
#: `CAPTION_MEASURES` for each of the row's alt texts.
CAPTIONS = pa.list_(pa.struct(list(CAPTION_MEASURES)))


def measured_settings(config: FilterConfig) -> dict[str, Any]:
    """Return the settings that change a measure: all others are thresholds, applied later."""
    return {"max_pixels": config.image.max_pixels}


def measure(task: Task, part: str, config: FilterConfig, features: bool) -> StageReport:
    """Write a row of measures for each fetched row of the part.

    With `features`, which `alignment: linear` needs, the image features are a measure too.
    """
    columns = ["row", "uid", "split", "reason", "captions", "raw", "image_offset", "image_size"]
    outcome = tables_of(task.run, "download").read_table(f"{part}.parquet", columns)
    fetched = outcome.filter(pa.compute.is_null(outcome["reason"]))
    images = read_images(task.run, fetched)
    measures = image_table([measure_image(data, config.image.max_pixels) for data in images])
    captions = _caption_lists(fetched["captions"].combine_chunks())
    own = fetched.select(["row", "uid", "split"])
    table = pa.table(
        {
            **{name: own[name] for name in own.column_names},
            **{name: measures[name] for name in IMAGE_MEASURES.names},
            "captions": captions,
        }
    )
    if features:
        table = table.append_column("features", _features(images))
    task.write(part, table)
    return StageReport(counts={"images": table.num_rows}, bytes=sum(map(len, images)))


def _features(images: list[bytes]) -> pa.Array:
    from pipeline.scorers.alignment_images import WIDTH, image_features

    values = pa.array(image_features(images).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, WIDTH)


def _caption_lists(captions: pa.ListArray) -> pa.ListArray:
    """Return the measures of each row's captions, in the rows' own list structure."""
    texts = captions.flatten().to_pylist()
    measured = caption_table(measure_captions(texts)).combine_chunks()
    structs = pa.StructArray.from_arrays(
        [measured[name].combine_chunks() for name in CAPTION_MEASURES.names],
        fields=list(CAPTION_MEASURES),
    )
    lengths = captions.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int32())
    return pa.ListArray.from_arrays(offsets, structs)
