"""Stage `choose`: the last verdicts, which need the scores: who stays once captions are judged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.config import FilterConfig
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 1


def choose(task: Task, parts: list[str], config: FilterConfig, min_captions: int) -> StageReport:
    """Write each part's last verdicts, one row per scored image, then the stage's mark.

    Columns: row, uid, split, size (of the stored image [bytes]), reason (null = kept) and
    caption_reasons (per caption of the score table; null = kept).
    """
    kept = []
    for part in parts:
        table = tables_of(task.run, "score").read_table(
            f"{part}.parquet", ["row", "uid", "captions"]
        )
        lengths = table["captions"].combine_chunks().value_lengths().fill_null(0)
        nothing = pa.scalar(None, pa.string())
        reasons = pc.if_else(pc.less(lengths, min_captions), "no_caption", nothing)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        verdicts = {
            "row": table["row"],
            "uid": table["uid"],
            **_stored(task.run, part, table["row"]),
            "reason": reasons,
            "caption_reasons": pa.ListArray.from_arrays(
                offsets, pa.nulls(offsets[-1].as_py(), pa.string())
            ),
        }
        task.write(part, pa.table(verdicts))
        kept.append(reasons.null_count)
    task.write(ALL, pa.table({"part": pa.array(parts, pa.string()), "kept": pa.array(kept)}))
    return StageReport(counts={"kept": sum(kept)})


def _stored(run: Directory, part: str, rows: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    columns = ["row", "split", "image_size"]
    outcome = tables_of(run, "download").read_table(f"{part}.parquet", columns)
    found = outcome.take(pc.index_in(rows, value_set=outcome["row"].combine_chunks()))
    return {"split": found["split"], "size": found["image_size"]}
