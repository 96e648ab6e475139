"""Stage `pack`: write one shard of the plan as WebDataset, with its rows of the index."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import META_PREFIX, SCORES, Caption, Sample, index_schema, score_column
from pipeline.sources.row import cast, meta_types
from pipeline.stages.images import read_images
from pipeline.stages.shuffle import STAGE as PLAN
from pipeline.stages.task import SHARDS, StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 2
#: Metadata that stays out of the index: long JSON text, read with the sample.
_NOT_INDEXED = META_PREFIX + "annotations"


def pack(task: Task, name: str, images: Mapping[str, bytes] | None = None) -> StageReport:
    """Write one shard and its rows of the index; the index table commits the shard.

    `images`, by uid, are taken instead of the stored ones, which may be there no more.
    """
    planned = tables_of(task.run, PLAN).read_table(f"{name}.parquet")
    samples = _samples(task.run, planned, images)
    shards = task.run / SHARDS
    file_name = f"{name}.tar"
    temporary = shards.temporary(file_name)
    try:
        _write_tar(temporary, samples)
        rows = _index_rows(temporary, file_name, samples, planned["split"].to_pylist())
        digest = hashlib.sha256()
        with temporary.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        size = temporary.stat().st_size
        # It tells where members lie in the earlier tar, and must not outlive that.
        tables_of(task.run, task.stage).remove(f"{name}.parquet")
        shards.commit(temporary, file_name)
    finally:
        temporary.unlink(missing_ok=True)
    marks = {b"sha256": digest.hexdigest().encode(), b"bytes": str(size).encode()}
    task.write(name, rows.replace_schema_metadata(marks))
    return StageReport(counts={"samples": len(samples)}, bytes=size)


def drop_unplanned(run: Directory, names: Collection[str]) -> None:
    """Delete tables of shards that are in the plan no more, which name their samples."""
    tables = tables_of(run, "pack")
    for name in tables.names("*.parquet"):
        if name.removesuffix(".parquet") not in names:
            tables.remove(name)


def _samples(
    run: Directory, planned: pa.Table, given: Mapping[str, bytes] | None
) -> list[tuple[bytes, Sample]]:
    """Return the shard's images and JSON members, read part by part, in the planned order."""
    found: dict[int, tuple[bytes, Sample]] = {}
    for part in dict.fromkeys(planned["part"].to_pylist()):
        rows = planned.filter(pc.equal(planned["part"], part))["row"].combine_chunks()
        scored = _take(run, "score", part, rows)
        chosen = _take(run, "choose", part, rows)["caption_reasons"].to_pylist()
        fetched = _take(run, "download", part, rows)
        if given is None:
            images = read_images(run, fetched)
        else:
            images = [given[uid] for uid in fetched["uid"].to_pylist()]
        for image, row, captions, reasons in zip(
            images, fetched.to_pylist(), scored["captions"].to_pylist(), chosen, strict=True
        ):
            kept = [c for c, reason in zip(captions, reasons, strict=True) if reason is None]
            found[row["row"]] = (image, _sample(row, kept))
    return [found[row] for row in planned["row"].to_pylist()]


def _take(run: Directory, stage: str, part: str, rows: pa.Array) -> pa.Table:
    """Return the given rows of a part's table, in their order."""
    table = tables_of(run, stage).read_table(f"{part}.parquet")
    return table.take(pc.index_in(rows, value_set=table["row"].combine_chunks()))


def _sample(row: dict[str, Any], captions: list[dict[str, Any]]) -> Sample:
    meta = {
        name.removeprefix(META_PREFIX): value
        for name, value in row.items()
        if name.startswith(META_PREFIX)
    }
    return Sample(
        uid=row["uid"],
        url=row["url"],
        width=row["width"],
        height=row["height"],
        captions=[
            Caption(
                text=caption["text"],
                source=caption["source"],
                scores={score: _rounded(caption[score]) for score in SCORES},
                nouns=caption["nouns"],
                attributes=caption["attributes"],
            )
            for caption in captions
        ],
        meta=meta,
    )


def _rounded(value: float | None) -> float | None:
    # Four digits: beyond them a score depends on the order of floating-point sums.
    return None if value is None else round(float(value), 4)


def best_caption(captions: Sequence[Caption]) -> str:
    """Return the caption of the highest quality, the first of equals; empty if there is none."""
    if not captions:
        return ""
    return max(captions, key=lambda caption: caption["scores"]["quality"] or 0.0)["text"]


def _write_tar(path: Path, samples: Sequence[tuple[bytes, Sample]]) -> None:
    # webdataset imports torch where there is one, so it waits until it is needed.
    import webdataset

    # Fixed owner, mode and time: equal samples give equal bytes.
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, user="tcjepa", group="tcjepa", mode=0o444, mtime=0)
        for image, sample in samples:
            writer.write(
                {
                    "__key__": sample["uid"],
                    image_format(image): image,
                    "json": json.dumps(sample, sort_keys=True, ensure_ascii=False).encode(),
                    "txt": best_caption(sample["captions"]).encode(),
                }
            )
        writer.close()


def image_format(data: bytes) -> str:
    """Return the member extension of an encoded image: jpg, png or webp."""
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[:4] == b"RIFF" else "jpg"


def _index_rows(
    path: Path, name: str, samples: Sequence[tuple[bytes, Sample]], splits: Sequence[str]
) -> pa.Table:
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    rows, metas = [], []
    for (image, sample), split in zip(samples, splits, strict=True):
        kind = image_format(image)
        image_offset, image_size = places[f"{sample['uid']}.{kind}"]
        json_offset, json_size = places[f"{sample['uid']}.json"]
        rows.append(
            {
                "uid": sample["uid"],
                "shard": name,
                "image_offset": image_offset,
                "image_size": image_size,
                "image_format": kind,
                "json_offset": json_offset,
                "json_size": json_size,
                "width": sample["width"],
                "height": sample["height"],
                "n_captions": len(sample["captions"]),
                **_score_statistics(sample["captions"]),
                "split": split,
            }
        )
        meta = {META_PREFIX + key: value for key, value in sample["meta"].items()}
        metas.append({key: value for key, value in meta.items() if key != _NOT_INDEXED})
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(index_schema([]))))
    # The parts that meet in a shard may hold different types; all-null columns have none yet.
    for column, kind in meta_types(metas).items():
        values = [cast(meta.get(column), kind) for meta in metas]
        known = any(value is not None for value in values)
        table = table.append_column(column, pa.array(values, kind if known else pa.null()))
    return table


def _score_statistics(captions: Sequence[Caption]) -> dict[str, float | None]:
    statistics: dict[str, float | None] = {}
    for score in SCORES:
        values = [v for caption in captions if (v := caption["scores"][score]) is not None]
        statistics[score_column(score, "best")] = max(values) if values else None
        statistics[score_column(score, "mean")] = sum(values) / len(values) if values else None
    return statistics
