"""Stage `embed`: every fetched image once through the dual encoder of the `embed` section.

Alignment by CLIP and semantic duplicates both read the vectors; thresholds of neither make it run
again.
"""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.scorers.embedding import EmbedConfig
from pipeline.stages.images import read_images
from pipeline.stages.task import StageReport, Task, tables_of

VERSION = 1

Floats = NDArray[np.float32]

#: Encoded images held in memory at once, at least; whole batches of the model.
_SLICE = 1024


def embed(task: Task, part: str, config: EmbedConfig) -> StageReport:
    """Write row, uid and embedding of each fetched row of the part.

    `embedding` is a fixed-size list of half floats, a unit vector of the model's space; null where
    the image could not be decoded or is a sliver. Raises `ConfigError` if the model cannot be
    loaded.
    """
    from pipeline.scorers.dual_encoder import load_dual_encoder

    columns = ["row", "uid", "reason", "raw", "image_offset", "image_size"]
    outcome = tables_of(task.run, "download").read_table(f"{part}.parquet", columns)
    fetched = outcome.filter(pc.is_null(outcome["reason"]))
    encoder = load_dual_encoder(config)
    start = time.monotonic()
    found, sound = [np.zeros((0, encoder.width), np.float32)], [np.zeros(0, bool)]
    read = 0
    step = config.batch_size * max(1, _SLICE // config.batch_size)
    for first in range(0, fetched.num_rows, step):
        images = read_images(task.run, fetched.slice(first, step))
        read += sum(map(len, images))
        vectors, decoded = encoder.images(images)
        found.append(vectors)
        sound.append(decoded)
    table = fetched.select(["row", "uid"]).append_column(
        "embedding", _half_lists(np.concatenate(found), np.concatenate(sound))
    )
    task.write(part, table)
    return StageReport(
        counts={"images": table.num_rows},
        bytes=read,
        figures={"embed_seconds": round(time.monotonic() - start, 3)},
    )


def _half_lists(vectors: Floats, sound: NDArray[np.bool_]) -> pa.FixedSizeListArray:
    values = pa.array(vectors.astype(np.float16).reshape(-1), pa.float16())
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=pa.array(~sound))
