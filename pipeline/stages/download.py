"""Stage 1: fetch a part's images with img2dataset, and record what became of every row."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipeline.part import Part
from pipeline.schema import UID_LENGTH
from pipeline.settings import PACE, Settings
from pipeline.sources.row import Source
from pipeline.stages.failures import FAILURES, classify
from pipeline.stages.images import RAW
from pipeline.stages.task import StageReport, Task
from pipeline.storage import TEMPORARY_PREFIX, Directory

VERSION = 2
# img2dataset numbers samples with this many digits per part: parts of up to 10^6 rows.
_ROW_DIGITS = 6
_PART_DIGITS = 5


class DownloadConfig(Settings):
    """How images are fetched and stored. Defaults are img2dataset's where not noted."""

    threads: int = Field(
        32, ge=1, description="concurrent fetches per worker process", json_schema_extra=PACE
    )
    timeout: float = Field(
        10, gt=0, description="longest wait for one socket operation [s]", json_schema_extra=PACE
    )
    retries: int = Field(
        2,
        ge=0,
        description="further tries after a failed fetch (img2dataset: 0)",
        json_schema_extra=PACE,
    )
    retry: Literal["transient"] | None = Field(
        None,
        description="in parts that are done, fetch again what failed for a passing reason",
        json_schema_extra=PACE,
    )
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = Field(
        "keep_ratio", description="how an image is made to fit image_size (img2dataset: border)"
    )
    image_size: int = Field(512, ge=16, description="shorter (keep_ratio) or longer side [px]")
    only_if_bigger: bool = Field(True, description="never enlarge an image")
    format: Literal["jpg", "png", "webp"] = Field("jpg", description="format of stored images")
    quality: int = Field(95, ge=0, le=100, description="JPEG or WebP quality; PNG compression 0-9")
    user_agent_token: str | None = Field(
        "tcjepa", description="named in the User-Agent header, and matched in X-Robots-Tag"
    )
    respect_opt_out: list[str] = Field(
        ["noai", "noimageai", "noindex", "noimageindex"],
        description="X-Robots-Tag directives that forbid use",
    )
    resources: dict[str, float] = Field(
        {}, description="Dask worker resources a fetch needs", json_schema_extra=PACE
    )

    @model_validator(mode="after")
    def _png_compression(self) -> DownloadConfig:
        if self.format == "png" and self.quality > 9:
            raise ValueError(f"quality is {self.quality}, but PNG compression is 0 to 9; set it")
        return self


def download(task: Task, part: Part, source: Source, config: DownloadConfig) -> StageReport:
    """Fetch the part's images into `raw/`, then write its table: one row per source row.

    Raises `RuntimeError` if img2dataset gave up on the whole part, which is never counted done.
    """
    rows = part.table(task.run)
    raw = task.run / RAW
    raw.remove(f"{part.name}_stats.json")
    scratch = _scratch(raw)
    try:
        wanted = _write_wanted(rows, source, scratch / "wanted.arrow")
        downloader = _downloader(config, scratch)
        ok, _ = downloader((part.index, wanted)) if wanted else (True, None)
        if not ok:
            raise RuntimeError(f"img2dataset failed on part {part.name}; its log has the traceback")
        fetched = _read_fetched(scratch, part, bool(wanted))
        # _stats.json goes last: it is what marks the raw part as whole.
        for suffix in (".tar", ".parquet", "_stats.json") if wanted else ():
            raw.commit(scratch / f"{part.name}{suffix}", f"{part.name}{suffix}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    table = _outcome(rows, part, fetched)
    task.write(part.name, table)
    failed = table.num_rows - table["reason"].null_count
    return StageReport(
        counts={"rows": table.num_rows, "failed": failed},
        bytes=sum(size or 0 for size in table["image_size"].to_pylist()),
    )


def _scratch(raw: Directory) -> Path:
    """Return a private folder beside the target, so that a killed fetch leaves nothing there."""
    if not raw.is_local:
        return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
    scratch = Path(raw.path()) / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    return scratch


def _write_wanted(rows: pa.Table, source: Source, path: Path) -> str | None:
    """Write the fetchable rows as img2dataset reads them; None if there are none."""
    errors, urls = rows["row_error"].to_pylist(), rows["url"].to_pylist()
    places = [place for place, error in enumerate(errors) if error is None]
    if not places:
        return None
    wanted = pa.table({"url": [source.fetch_url(urls[p]) for p in places], "place": places})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, wanted.schema) as writer:
        writer.write_table(wanted)
    return str(path)


def _downloader(config: DownloadConfig, folder: Path) -> Any:
    from img2dataset.downloader import Downloader
    from img2dataset.writer import WebDatasetSampleWriter

    from pipeline.stages.integrity import CheckedResizer

    resizer = CheckedResizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=config.only_if_bigger,
        encode_quality=config.quality,
        encode_format=config.format,
        skip_reencode=True,
    )
    return Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=resizer,
        thread_count=config.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url", "place"],
        timeout=config.timeout,
        number_sample_per_shard=10**_ROW_DIGITS,
        oom_shard_count=_PART_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=config.format,
        retries=config.retries,
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=config.respect_opt_out,
    )


def _read_fetched(scratch: Path, part: Part, any_wanted: bool) -> dict[int, dict[str, Any]]:
    """Return img2dataset's records by place in the part, with each image's place in the tar."""
    if not any_wanted:
        return {}
    offsets: dict[str, tuple[int, int]] = {}
    with tarfile.open(scratch / f"{part.name}.tar") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if extension != "json":
                offsets[key] = (member.offset_data, member.size)
    records = pq.read_table(scratch / f"{part.name}.parquet").to_pylist()
    for record in records:
        record["image_offset"], record["image_size"] = offsets.get(record["key"], (None, None))
    return {record["place"]: record for record in records}


def _outcome(rows: pa.Table, part: Part, fetched: dict[int, dict[str, Any]]) -> pa.Table:
    """Return the part's rows with what became of each; `reason` is null for fetched images."""
    reasons: list[str | None] = []
    for place, row_error in enumerate(rows["row_error"].to_pylist()):
        record = fetched.get(place)
        if row_error is not None:
            reasons.append(row_error)
        elif record is None:  # img2dataset swallowed an exception in the middle of this sample
            reasons.append("other")
        elif record["status"] == "success" and record["image_offset"] is not None:
            reasons.append(None)
        else:
            reasons.append(classify(record["error_message"]))

    def column(name: str, kind: pa.DataType) -> pa.Array:
        values = (
            fetched[place][name] if reason is None else None for place, reason in enumerate(reasons)
        )
        return pa.array(values, kind)

    hashes = column("sha256", pa.string()).to_pylist()
    outcome = {
        "row": pa.array(range(part.first_row, part.first_row + len(reasons)), pa.int64()),
        "uid": pa.array([h[:UID_LENGTH] if h else None for h in hashes], pa.string()),
        "failure": pa.array([FAILURES[r][0] if r else None for r in reasons], pa.string()),
        "reason": pa.array(reasons, pa.string()),
        **{name: column(name, pa.int32()) for name in ("width", "height")},
        **{name: column(name, pa.int32()) for name in ("original_width", "original_height")},
        **{name: column(name, pa.int64()) for name in ("image_offset", "image_size")},
        "raw": pa.array([None if r else f"{part.name}.tar" for r in reasons], pa.string()),
    }
    kept = rows.drop_columns(["row_error"])
    return pa.table({**outcome, **{name: kept[name] for name in kept.column_names}})
