"""Stage 1 for images that are in tars already: nothing is fetched, copied or re-encoded.

Writes the same table as `download`. An image keeps its place in the tar it came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.fetch.image_header import JPEG_START, image_size, jpeg_scans
from pipeline.filters.animation import is_animated
from pipeline.forget.listing import forgotten_uids
from pipeline.forget.tables import blanked
from pipeline.part import Part
from pipeline.schema import UID_LENGTH, uid_of
from pipeline.sources.row import OBTAIN_COLUMNS, ROW_ERRORS
from pipeline.sources.tar import Member, open_tar, samples
from pipeline.sources.webdataset import EXTENSIONS, WebdatasetSource
from pipeline.stages.download import DownloadConfig
from pipeline.stages.failures import FAILURES, classify
from pipeline.stages.integrity import MOST_SCANS, is_truncated
from pipeline.stages.task import StageReport, Task, discard_measures

VERSION = 1

_Stored = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image found in its tar: width and height in pixels, offset and size in bytes."""

    uid: str
    width: int
    height: int
    offset: int
    size: int
    animated: bool


def adopt(task: Task, part: Part, source: WebdatasetSource, config: DownloadConfig) -> StageReport:
    """Write the `download` table of a part whose images are in tars.

    uid: that of the original file where its SHA-256 was recorded, else of the stored bytes.
    Whatever is wrong with a sample or a tar is a counted reason; `config` is not read, as nothing
    is fetched. Raises `FileNotFoundError` if a tar is gone.
    """
    rows = part.table(task.run)
    stored: list[_Stored] = rows["stored"].to_pylist()
    outcome: list[_Image | str] = []
    by_tar: dict[str, list[int]] = {}
    for place, error in enumerate(rows["row_error"].to_pylist()):
        failed = stored[place]["error"]
        outcome.append(error or (classify(failed) if failed is not None else "missing_image"))
        if error is None and failed is None:
            by_tar.setdefault(stored[place]["tar"], []).append(place)
    for tar, places in by_tar.items():
        wanted = {place: stored[place] for place in places}
        for place, found in _read_tar(tar, wanted, source.config.max_member_bytes):
            outcome[place] = found
    table = _table(rows, part, stored, outcome)
    if forgotten := forgotten_uids(task.run):
        table = blanked(table, pa.array(sorted(forgotten), pa.string()))
    discard_measures(task.run, part.name)
    task.write(part.name, table)
    images = [found for found in outcome if isinstance(found, _Image)]
    return StageReport(
        counts={"rows": len(outcome), "failed": len(outcome) - len(images)},
        bytes=sum(image.size for image in images),
    )


def _read_tar(
    path: str, wanted: dict[int, _Stored], limit: int
) -> Iterable[tuple[int, _Image | str]]:
    """Yield what each wanted image is, or why it cannot be had; absent ones are not yielded."""
    with open_tar(path) as file:
        placed = [place for place, item in wanted.items() if item["offset"] is not None]
        for place in sorted(placed, key=lambda place: int(wanted[place]["offset"])):
            item = wanted[place]
            member = Member(item["key"], item["offset"], item["size"], whole=True)
            yield place, _read_image(file, member, item, limit)
        by_key = {item["key"]: place for place, item in wanted.items() if item["offset"] is None}
        if not by_key:
            return
        # One pass: headers are walked and each listed image is read as the walk meets it.
        for sample in samples(file):
            place = by_key.get(sample.key or "", -1)
            image = next((m for name, m in sample.members.items() if name in EXTENSIONS), None)
            if place < 0 or image is None or sample.error == "duplicate_key":
                continue
            found = sample.error or _read_image(file, image, wanted[place], limit)
            yield place, found
            del by_key[sample.key or ""]
            if not by_key:
                return


def _read_image(file: Any, member: Member, item: _Stored, limit: int) -> _Image | str:
    if member.size > limit:
        return "oversized_member"
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        return "damaged_tar"
    size = image_size(data)
    if size is None or max(size) >= 2**31:
        return "not_an_image"
    # Its later stages decode it, and each scan is a pass over all of its pixels.
    if data.startswith(JPEG_START) and jpeg_scans(data, MOST_SCANS) > MOST_SCANS:
        return "too_many_pixels"
    if is_truncated(data):
        return "truncated"
    digest = item["sha256"]
    uid = digest[:UID_LENGTH] if digest else uid_of(data)
    return _Image(uid, *size, member.offset, member.size, is_animated(data))


def _class(reason: str | None) -> str | None:
    if reason is None:
        return None
    return "permanent" if reason in ROW_ERRORS else FAILURES[reason][0]


def _table(
    rows: pa.Table, part: Part, stored: list[_Stored], outcome: list[_Image | str]
) -> pa.Table:
    reasons = [found if isinstance(found, str) else None for found in outcome]

    def of_image(name: str, kind: pa.DataType) -> pa.Array:
        values = (getattr(o, name) if isinstance(o, _Image) else None for o in outcome)
        return pa.array(values, kind)

    def of_stored(name: str, kind: pa.DataType) -> pa.Array:
        pairs = zip(stored, outcome, strict=True)
        return pa.array([s[name] if isinstance(o, _Image) else None for s, o in pairs], kind)

    kept = rows.drop_columns(
        ["row_error", *(name for name in OBTAIN_COLUMNS if name in rows.column_names)]
    )
    return pa.table(
        {
            "row": pa.array(range(part.first_row, part.first_row + len(outcome)), pa.int64()),
            "uid": of_image("uid", pa.string()),
            "failure": pa.array([_class(reason) for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "width": of_image("width", pa.int32()),
            "height": of_image("height", pa.int32()),
            "original_width": of_stored("original_width", pa.int32()),
            "original_height": of_stored("original_height", pa.int32()),
            "image_offset": of_image("offset", pa.int64()),
            "image_size": of_image("size", pa.int64()),
            "animated": of_image("animated", pa.bool_()),
            "raw": of_stored("tar", pa.string()),
            **{name: kept[name] for name in kept.column_names},
        }
    )
