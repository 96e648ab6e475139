"""The verdict over all parts: thresholds, repeated captions, exact and near-duplicate images.

Reads measures only. Rows of one image (exact duplicates share a uid) and of its near-duplicates
form one group, led by its representative; the alt texts of the others are pooled into it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.boilerplate import count_images, images_per_caption
from pipeline.filters.config import FilterConfig
from pipeline.filters.duplicates import near_duplicates, preference_order
from pipeline.filters.measures import CAPTION_MEASURES, IMAGE_MEASURES, colour_array
from pipeline.filters.verdicts import caption_reasons, image_reasons
from pipeline.stages.task import ALL, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 2

Rows = npt.NDArray[np.int64]
Reasons = npt.NDArray[np.object_]

#: What is read of the measures; the image features stay where they are.
COLUMNS = ["row", "uid", "split", *IMAGE_MEASURES.names, "captions"]

_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("uid", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
        ("representative", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("caption_reasons", pa.list_(pa.string())),
    ]
)


@dataclass
class _Verdicts:
    """Arrays over all fetched rows (n,) and over all their alt texts (m,)."""

    row: Rows
    uid: Reasons
    split: Reasons
    reason: Reasons  # (n,) why the row is dropped, None where kept
    leader: Rows  # (n,) place of the row that leads the group
    owner: Rows  # (m,) place of the row a caption belongs to
    caption_reason: Reasons  # (m,)
    first_caption: Rows  # (n + 1,) where each row's captions start


def select(task: Task, parts: list[str], config: FilterConfig) -> StageReport:
    """Write each part's verdicts, then the stage's mark: one row per part with its kept images."""
    tables = [
        tables_of(task.run, "filter").read_table(f"{part}.parquet", COLUMNS) for part in parts
    ]
    verdicts = _judge(pa.concat_tables(tables), config)
    ends = np.cumsum([table.num_rows for table in tables])
    spans = list(zip(parts, [0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    pools = _pool(task.run, spans, verdicts)
    if config.on_bad_caption == "drop_image":
        for place in np.flatnonzero(verdicts.reason == None):  # noqa: E711 (elementwise)
            if not _pooled(int(place), verdicts, pools):
                verdicts.reason[place] = "no_good_caption"
    kept = []
    for part, start, end in spans:
        texts = _texts(task.run, part)
        table = _part_table(texts, start, end, verdicts, pools)
        task.write(part, table)
        kept.append(table["reason"].null_count)
    task.write(ALL, pa.table({"part": parts, "kept": kept}))
    return StageReport(counts={"fetched": len(verdicts.row), "kept": sum(kept)})


def _judge(table: pa.Table, config: FilterConfig) -> _Verdicts:
    reason = _objects(image_reasons(table, config))
    uid = _objects(table["uid"])
    split = _objects(table["split"])
    pixels = np.asarray(pc.fill_null(table["pixels"], 0).to_numpy(), dtype=np.int64)
    order = preference_order(split.tolist(), pixels, uid.tolist())
    leader = _exact_leaders(uid, order)
    copies = leader != np.arange(len(leader))
    _near_leaders(table, np.flatnonzero(~copies & (reason == None)), order, leader, config)  # noqa: E711
    leader = leader[leader]  # an exact copy of a near-duplicate follows it to its representative
    near = ~copies & (leader != np.arange(len(leader)))
    reason[near] = "near_duplicate"
    reason[copies] = "exact_duplicate"
    captions = table["captions"].combine_chunks()
    lengths = np.asarray(captions.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return _Verdicts(
        row=np.asarray(table["row"].to_numpy(), dtype=np.int64),
        uid=uid,
        split=split,
        reason=reason,
        leader=leader,
        owner=owner,
        caption_reason=_judge_captions(captions, uid[owner], len(set(uid)), config),
        first_caption=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _exact_leaders(uid: Reasons, order: Rows) -> Rows:
    """Return for each row (n,) the place of the most preferred row of the same image."""
    _, first, inverse = np.unique(uid[order].astype(str), return_index=True, return_inverse=True)
    leader = np.empty(len(uid), dtype=np.int64)
    leader[order] = order[first[inverse]]
    return leader


def _near_leaders(
    table: pa.Table, candidates: Rows, order: Rows, leader: Rows, config: FilterConfig
) -> None:
    """Point near-duplicates among distinct, sound images at the copy to keep; changes `leader`."""
    rules = config.duplicates
    if rules.radius is None or not len(candidates):
        return
    measured = table.take(pa.array(candidates))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    copy_of = near_duplicates(
        np.asarray(measured["phash"].to_numpy(), dtype=np.uint64),
        rules.radius,
        colours=colour_array(measured["colours"]),
        tolerance=rules.colour_tolerance,
        order=np.argsort(rank[candidates]),
    )
    leader[candidates] = candidates[copy_of]


def _judge_captions(
    captions: pa.ListArray, uids: Reasons, images: int, config: FilterConfig
) -> Reasons:
    structs = captions.flatten()
    fields = [structs.field(name) for name in CAPTION_MEASURES.names]
    measures = pa.Table.from_arrays(fields, schema=CAPTION_MEASURES)
    keys = measures["caption_key"]
    counts = count_images(keys, pa.array(uids, pa.string()))
    return _objects(caption_reasons(measures, config, images_per_caption(keys, counts), images))


def _pool(
    run: Directory, spans: list[tuple[str, int, int]], verdicts: _Verdicts
) -> dict[int, list[str]]:
    """Return the pooled captions of every kept leader that has followers or repeats itself.

    Marks captions that end nowhere: `image_dropped` with their image, `duplicate_text` when the
    image has the same text already. Texts of single rows are not held in memory.
    """
    leads = verdicts.leader[verdicts.owner]
    sound = verdicts.caption_reason == None  # noqa: E711
    verdicts.caption_reason[sound & (verdicts.reason[leads] != None)] = "image_dropped"  # noqa: E711
    alive = verdicts.caption_reason == None  # noqa: E711
    per_leader = np.bincount(leads[alive], minlength=len(verdicts.row))
    offered: dict[int, list[tuple[bool, int, str]]] = defaultdict(list)
    for part, start, end in spans:
        texts = _texts(run, part)
        low, high = verdicts.first_caption[start], verdicts.first_caption[end]
        for caption in np.flatnonzero(alive[low:high]) + low:
            place = int(verdicts.owner[caption])
            if per_leader[leads[caption]] > 1 or place != leads[caption]:
                text = texts[place - start][caption - verdicts.first_caption[place]]
                offered[int(leads[caption])].append((place != leads[caption], int(caption), text))
    pools: dict[int, list[str]] = {}
    for place, offers in offered.items():
        pool: dict[str, None] = {}
        for _, caption, text in sorted(offers):
            if text in pool:
                verdicts.caption_reason[caption] = "duplicate_text"
            pool.setdefault(text)
        pools[place] = list(pool)
    return pools


def _pooled(place: int, verdicts: _Verdicts, pools: dict[int, list[str]]) -> bool:
    own = slice(verdicts.first_caption[place], verdicts.first_caption[place + 1])
    return place in pools or bool(np.any(verdicts.caption_reason[own] == None))  # noqa: E711


def _part_table(
    texts: list[list[str]], start: int, end: int, verdicts: _Verdicts, pools: dict[int, list[str]]
) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for place in range(start, end):
        span = slice(verdicts.first_caption[place], verdicts.first_caption[place + 1])
        reasons = verdicts.caption_reason[span].tolist()
        kept = verdicts.reason[place] is None
        own = [t for t, r in zip(texts[place - start], reasons, strict=True) if r is None]
        leader = int(verdicts.leader[place])
        rows.append(
            {
                "row": int(verdicts.row[place]),
                "uid": verdicts.uid[place],
                "split": verdicts.split[place],
                "reason": verdicts.reason[place],
                "representative": verdicts.uid[leader] if leader != place else None,
                "captions": pools.get(place, own) if kept else None,
                "caption_reasons": reasons,
            }
        )
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _texts(run: Directory, part: str) -> list[list[str]]:
    """Return the alt texts of a part's fetched rows."""
    table = tables_of(run, "download").read_table(f"{part}.parquet", ["reason", "captions"])
    fetched = table.filter(pc.is_null(table["reason"]))
    return [texts or [] for texts in fetched["captions"].to_pylist()]


def _objects(column: pa.Array | pa.ChunkedArray) -> Reasons:
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]
