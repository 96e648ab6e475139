"""Stage 1: fetch a part's images with img2dataset, and record what became of every row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.install import govern
from pipeline.forget.listing import forgotten_uids
from pipeline.forget.tables import blanked
from pipeline.part import Part, fingerprint
from pipeline.schema import UID_LENGTH
from pipeline.settings import PACE, effective
from pipeline.sources.row import OBTAIN_COLUMNS, Source
from pipeline.stages.failures import FAILURES, UNREACHED, classify
from pipeline.stages.images import RAW
from pipeline.stages.raw import Records, fetch_raw
from pipeline.stages.task import StageReport, Task, discard_measures, tables_of

VERSION = 4
# In a table's metadata: what its rows were fetched with, so that a retry knows it may add to them.
_FETCHED_WITH = b"fetched_with"
_IMAGE_COLUMNS = {
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "image_offset": pa.int64(),
    "image_size": pa.int64(),
    "animated": pa.bool_(),
}


class DownloadConfig(FetchConfig):
    """How images are fetched and stored. Defaults are img2dataset's where not noted."""

    retry: Literal["transient"] | None = Field(
        None,
        description="in parts that are done, fetch again what failed for a passing reason",
        json_schema_extra=PACE,
    )
    wholesale_rows: int | None = Field(
        20,
        ge=1,
        description="a part of at least this many rows, of which none got an answer from any host, "
        "failed as a whole (the network was down) and is not counted done; null: it is",
        json_schema_extra=PACE,
    )
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = Field(
        "keep_ratio", description="how an image is made to fit image_size (img2dataset: border)"
    )
    image_size: int = Field(
        512,
        ge=16,
        le=8192,
        description="shorter (keep_ratio) or longer side (img2dataset: 256) [px]",
    )
    only_if_bigger: bool = Field(True, description="never enlarge an image (img2dataset: false)")
    format: Literal["jpg", "png", "webp"] = Field("jpg", description="format of stored images")
    quality: int = Field(95, ge=0, le=100, description="JPEG or WebP quality; PNG compression 0-9")
    resources: dict[str, float] = Field(
        {}, description="Dask worker resources a fetch needs", json_schema_extra=PACE
    )

    @model_validator(mode="after")
    def _png_compression(self) -> DownloadConfig:
        if self.format == "png" and self.quality > 9:
            raise ValueError(f"quality is {self.quality}, but PNG compression is 0 to 9; set it")
        return self


def download(
    task: Task,
    part: Part,
    source: Source,
    config: DownloadConfig,
    blocklist: Blocklist | None = None,
) -> StageReport:
    """Fetch the part's images into `raw/`, then write its table: one row per source row.

    A part of a later generation (`download.retry`) whose table is there has only its transient
    failures fetched, into `raw/<part>-r<generation>.*`; all else stays as it is.

    Raises `RuntimeError` if img2dataset gave up on the whole part, or nothing at all could be
    reached (`download.wholesale_rows`); such a part is never counted done.
    """
    govern(config, blocklist, source.local_root)
    rows = part.table(task.run)
    mark = fingerprint("fetched", VERSION, effective(config), [part.fingerprint])
    known = _known(task, part, mark)
    forgotten = forgotten_uids(task.run)
    urls = _urls(rows, source)
    if known is None:

        def accept(found: Records) -> None:
            _check_reached(found, config)
            # Only now, before the first file is replaced: the earlier table names images that are
            # about to go, and a config that is taken back would take it for done.
            tables_of(task.run, task.stage).remove(f"{part.name}.parquet")
            discard_measures(task.run, part.name)
            _forget_retries(task, part)

        unwanted = _unwanted(rows, forgotten)
        records = fetch_raw(task.run, part.name, urls, config, accept=accept, unwanted=unwanted)
        table = _outcome(rows, part, part.name, records)
    else:
        table = _fetched_again(task, part, config, urls, known=known, forgotten=forgotten)
    if forgotten:
        table = blanked(table, pa.array(sorted(forgotten), pa.string()))
    task.write(part.name, table.replace_schema_metadata({_FETCHED_WITH: mark.encode()}))
    failed = table.num_rows - table["reason"].null_count
    return StageReport(
        counts={"rows": table.num_rows, "failed": failed},
        bytes=pc.sum(table["image_size"]).as_py() or 0,
    )


def _urls(rows: pa.Table, source: Source) -> dict[int, str]:
    """Return the URLs to fetch by their rows' places; rows with an error have none."""
    pairs = enumerate(zip(rows["url"].to_pylist(), rows["row_error"].to_pylist(), strict=True))
    return {place: source.fetch_url(url) for place, (url, error) in pairs if error is None}


def _known(task: Task, part: Part, mark: str) -> pa.Table | None:
    """Return the table of an earlier generation, if it was fetched as it would be now."""
    tables, name = tables_of(task.run, task.stage), f"{part.name}.parquet"
    if part.generation == 0 or not tables.exists(name):
        return None
    with tables.fs.open(tables.path(name), "rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    return tables.read_table(name) if metadata.get(_FETCHED_WITH) == mark.encode() else None


def _fetched_again(
    task: Task,
    part: Part,
    config: DownloadConfig,
    urls: dict[int, str],
    *,
    known: pa.Table,
    forgotten: Collection[str],
) -> pa.Table:
    """Return the known table with its transient failures fetched anew."""
    name = f"{part.name}-r{part.generation}"
    again = pc.fill_null(pc.equal(known["failure"], "transient"), False)
    wanted = {place: urls[place] for place, yes in enumerate(again.to_pylist()) if yes}
    # Nothing to check: these rows failed before, and stay transient if they fail for good.
    rows = part.table(task.run)
    unwanted = _unwanted(rows, forgotten)
    records = fetch_raw(task.run, name, wanted, config, accept=lambda _: None, unwanted=unwanted)
    anew = _outcome(rows, part, name, records)
    places = [place if place not in wanted else place + len(known) for place in range(len(known))]
    return pa.concat_tables([known, anew]).take(pa.array(places, pa.int64()))


def _unwanted(rows: pa.Table, forgotten: Collection[str]) -> Callable[[int, dict[str, Any]], bool]:
    """Return whether the image of a place is not to be kept: forgotten, or not the listed one.

    An image under another one's hash is in no table, so `forget` would not find it.
    """
    expected = _expected(rows)

    def unwanted(place: int, record: dict[str, Any]) -> bool:
        sha256 = record["sha256"]
        return sha256[:UID_LENGTH] in forgotten or expected[place] not in (None, sha256)

    return unwanted


def _forget_retries(task: Task, part: Part) -> None:
    """Remove what earlier generations fetched, as the whole part is fetched anew."""
    raw = task.run / RAW
    for name in raw.names(f"{part.name}-r*"):
        raw.remove(name)


def _check_reached(records: Records, config: DownloadConfig) -> None:
    """Raise `RuntimeError` if the network was down while these rows were fetched."""
    reasons = [_reason(record) for record in records.values()]
    # What policy forbids was not tried, and says nothing of the network.
    tried = [r for r in reasons if r is None or FAILURES[r][0] != "policy"]
    least = config.wholesale_rows
    if least is not None and len(tried) >= least and set(tried) <= UNREACHED:
        raise RuntimeError(
            f"none of {len(tried)} URLs got an answer from any host (the first: {tried[0]}); "
            "the network may be down. If the hosts are really gone, set "
            "download.wholesale_rows=null"
        )


def _reason(record: dict[str, Any] | None) -> str | None:
    if record is None:  # img2dataset swallowed an exception in the middle of this sample
        return "other"
    if record["status"] == "success" and record["image_offset"] is not None:
        return None
    return classify(record["error_message"])


def _outcome(rows: pa.Table, part: Part, raw: str, records: Records) -> pa.Table:
    """Return the part's rows with what became of each; `reason` is null for fetched images."""
    expected = _expected(rows)
    reasons: list[str | None] = []
    for place, row_error in enumerate(rows["row_error"].to_pylist()):
        record = records.get(place)
        reason = row_error or _reason(record)
        if reason is None and expected[place] not in (None, record["sha256"]):  # type: ignore[index]
            reason = "wrong_content"
        reasons.append(reason)

    def column(name: str, kind: pa.DataType) -> pa.Array:
        values = (
            records[place][name] if reason is None else None for place, reason in enumerate(reasons)
        )
        return pa.array(values, kind)

    hashes = column("sha256", pa.string()).to_pylist()
    outcome = {
        "row": pa.array(range(part.first_row, part.first_row + len(reasons)), pa.int64()),
        "uid": pa.array([h[:UID_LENGTH] if h else None for h in hashes], pa.string()),
        "failure": pa.array([FAILURES[r][0] if r else None for r in reasons], pa.string()),
        "reason": pa.array(reasons, pa.string()),
        **{name: column(name, kind) for name, kind in _IMAGE_COLUMNS.items()},
        "raw": pa.array([None if r else f"{raw}.tar" for r in reasons], pa.string()),
    }
    used_up = ["row_error", *(name for name in OBTAIN_COLUMNS if name in rows.column_names)]
    kept = rows.drop_columns(used_up)
    return pa.table({**outcome, **{name: kept[name] for name in kept.column_names}})


def _expected(rows: pa.Table) -> list[str | None]:
    """Return the hex SHA-256 that the list gives for each file, in lower case."""
    if "expected_sha256" not in rows.column_names:
        return [None] * rows.num_rows
    return pc.utf8_lower(rows["expected_sha256"]).to_pylist()  # type: ignore[no-any-return]
