"""Stage 5: shuffle the kept samples and write them as WebDataset shards of a target size."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.schema import META_PREFIX, SCORES, Caption, Sample, index_schema, score_column
from pipeline.settings import Settings
from pipeline.sources.row import cast, meta_types
from pipeline.stages.download import read_images
from pipeline.stages.task import StageReport, Task, tables_of
from pipeline.storage import Directory

VERSION = 1
SHARDS = "shards"
#: Metadata that stays out of the index: long JSON text, read with the sample.
_NOT_INDEXED = META_PREFIX + "annotations"


class PackConfig(Settings):
    """How kept samples become shards."""

    shard_mb: float = Field(256, gt=0, description="target size of a shard's images [MB]")
    window: int = Field(
        64, ge=1, description="parts whose samples are shuffled together [parts]; bounds open files"
    )
    seed: int = Field(0, ge=0, description="of the shuffle")
    min_captions: int = Field(
        1, ge=0, description="images with fewer captions are dropped as `no_caption`; 0 keeps all"
    )


@dataclass(frozen=True)
class Packed:
    """A kept sample's place: part, row of the part's tables, and stored size [bytes]."""

    part: str
    uid: str
    split: str
    size: int


@dataclass(frozen=True)
class Shard:
    """A shard to write: its name and its samples in order."""

    name: str
    samples: tuple[Packed, ...]


def plan_shards(kept: Sequence[Packed], config: PackConfig) -> list[Shard]:
    """Return the shards, split by split: a windowed global shuffle cut at the target size.

    Parts are permuted and grouped into windows, samples permuted inside a window, so that a shard
    mixes samples of up to `window` parts and reads from no more. A pure function of its arguments.
    """
    shards: list[Shard] = []
    for split in sorted({sample.split for sample in kept}):
        stream = _shuffle([s for s in kept if s.split == split], config)
        for number, samples in enumerate(_cut(stream, config.shard_mb * 1e6)):
            shards.append(Shard(f"{split}-{number:05d}", tuple(samples)))
    return shards


def _shuffle(samples: list[Packed], config: PackConfig) -> Iterator[Packed]:
    generator = np.random.Generator(np.random.Philox(key=config.seed))
    by_part: dict[str, list[Packed]] = {}
    for sample in samples:
        by_part.setdefault(sample.part, []).append(sample)
    order = [sorted(by_part)[i] for i in generator.permutation(len(by_part))]
    for start in range(0, len(order), config.window):
        window = [s for part in order[start : start + config.window] for s in by_part[part]]
        yield from (window[i] for i in generator.permutation(len(window)))


def _cut(samples: Iterator[Packed], target: float) -> Iterator[list[Packed]]:
    shard: list[Packed] = []
    size = 0
    for sample in samples:
        if shard and size + sample.size > target:
            yield shard
            shard, size = [], 0
        shard.append(sample)
        size += sample.size
    if shard:
        yield shard


def pack(task: Task, shard: Shard) -> StageReport:
    """Write one shard and its rows of the index; the index table commits the shard."""
    samples = _samples(task.run, shard)
    shards = task.run / SHARDS
    name = f"{shard.name}.tar"
    temporary = shards.temporary(name)
    try:
        _write_tar(temporary, samples)
        rows = _index_rows(temporary, name, samples, shard)
        digest = hashlib.sha256()
        with temporary.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        size = temporary.stat().st_size
        shards.commit(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)
    marks = {b"sha256": digest.hexdigest().encode(), b"bytes": str(size).encode()}
    task.write(shard.name, rows.replace_schema_metadata(marks))
    return StageReport(counts={"samples": len(samples)}, bytes=size)


def _samples(run: Directory, shard: Shard) -> list[tuple[bytes, Sample]]:
    """Return the shard's images and JSON members, read part by part, in shard order."""
    wanted: dict[str, list[str]] = {}
    for sample in shard.samples:
        wanted.setdefault(sample.part, []).append(sample.uid)
    found: dict[str, tuple[bytes, Sample]] = {}
    for part, uids in wanted.items():
        scored = _rows_by_uid(tables_of(run, "score").read_table(f"{part}.parquet"), uids)
        fetched = _rows_by_row(
            tables_of(run, "download").read_table(f"{part}.parquet"),
            [row["row"] for row in scored.values()],
        )
        rows = [(uid, scored[uid], fetched[scored[uid]["row"]]) for uid in uids]
        images = read_images(
            run,
            part,
            [row["image_offset"] for *_, row in rows],
            [row["image_size"] for *_, row in rows],
        )
        for (uid, score, row), image in zip(rows, images, strict=True):
            found[uid] = (image, _sample(uid, row, score["captions"]))
    return [found[sample.uid] for sample in shard.samples]


def _rows_by_uid(table: pa.Table, uids: Sequence[str]) -> dict[str, dict[str, Any]]:
    mask = pc.is_in(table["uid"], value_set=pa.array(uids))
    return {row["uid"]: row for row in table.filter(mask).to_pylist()}


def _rows_by_row(table: pa.Table, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    mask = pc.is_in(table["row"], value_set=pa.array(rows, pa.int64()))
    return {row["row"]: row for row in table.filter(mask).to_pylist()}


def _sample(uid: str, row: dict[str, Any], captions: list[dict[str, Any]]) -> Sample:
    meta = {
        name.removeprefix(META_PREFIX): value
        for name, value in row.items()
        if name.startswith(META_PREFIX)
    }
    return Sample(
        uid=uid,
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
    path: Path, name: str, samples: Sequence[tuple[bytes, Sample]], shard: Shard
) -> pa.Table:
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    rows, metas = [], []
    for (image, sample), packed in zip(samples, shard.samples, strict=True):
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
                "split": packed.split,
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
