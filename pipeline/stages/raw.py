"""img2dataset called on a list of URLs: `raw/<name>.{tar,parquet,_stats.json}`, or nothing."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.forget.tars import blank_records, blank_tar
from pipeline.stages.images import RAW
from pipeline.storage import TEMPORARY_PREFIX, Directory, scratch_root

if TYPE_CHECKING:
    from pipeline.stages.download import DownloadConfig

# img2dataset numbers samples with this many digits per part: parts of up to 10^6 rows.
_ROW_DIGITS = 6
_PART_DIGITS = 5
_BLOCK = tarfile.BLOCKSIZE

#: What img2dataset recorded of a row, by the row's place in its part.
Records = dict[int, dict[str, Any]]


def fetch_raw(
    run: Directory,
    name: str,
    urls: dict[int, str],
    config: DownloadConfig,
    *,
    accept: Callable[[Records], None],
    unwanted: Callable[[int, dict[str, Any]], bool],
) -> Records:
    """Fetch URLs, given by place, into `raw/<name>.*`; return what became of each place.

    A record is img2dataset's row (`status`, `error_message`, `sha256` of the file as fetched, sizes
    in pixels, …) with `image_offset` and `image_size` [bytes] in the tar and `animated`; a place
    whose sample img2dataset lost has none. `accept` may raise to have nothing kept. Of images that
    are `unwanted`, by place and record, only the record is returned: their bytes are blanked.

    Raises `RuntimeError` if img2dataset gave up.
    """
    raw = run / RAW
    raw.remove(f"{name}_stats.json")
    if not urls:
        return {}
    scratch = _scratch(raw)
    try:
        number = int(name[:_PART_DIGITS])
        downloader = _downloader(config, scratch)
        ok, _ = downloader((number, _write_wanted(urls, scratch / "wanted.arrow")))
        if not ok:
            raise RuntimeError(f"img2dataset failed on part {name}; its log has the traceback")
        stem = f"{number:0{_PART_DIGITS}d}"
        records = _records(scratch / stem, downloader.resizer.animated)
        accept(records)
        _blank(scratch, stem, records, unwanted)
        # _stats.json goes last: it is what marks the raw part as whole.
        for suffix in (".tar", ".parquet", "_stats.json"):
            raw.commit(scratch / f"{stem}{suffix}", f"{name}{suffix}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return records


def _blank(
    folder: Path,
    stem: str,
    records: Records,
    unwanted: Callable[[int, dict[str, Any]], bool],
) -> None:
    stored = {place: r for place, r in records.items() if r["image_offset"] is not None}
    offsets = {r["image_offset"] for place, r in stored.items() if unwanted(place, r)}
    if offsets:
        here = Directory(folder)
        keys = blank_tar(here, f"{stem}.tar", offsets)
        blank_records(here, f"{stem}.parquet", keys)


def _scratch(raw: Directory) -> Path:
    """Return a private folder beside the target, so that a killed fetch leaves nothing there."""
    if not raw.is_local:
        return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=scratch_root()))
    scratch = Path(raw.path()) / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    scratch.mkdir(parents=True)
    return scratch


def _write_wanted(urls: dict[int, str], path: Path) -> str:
    """Write the URLs as img2dataset reads them."""
    wanted = pa.table({"url": list(urls.values()), "place": list(urls)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, wanted.schema) as writer:
        writer.write_table(wanted)
    return str(path)


def _downloader(config: DownloadConfig, folder: Path) -> Any:
    from img2dataset.downloader import Downloader
    from img2dataset.writer import WebDatasetSampleWriter

    from pipeline.stages.integrity import CheckedResizer

    resizer = CheckedResizer(
        max_pixels=config.max_pixels,
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
        retries=0,  # the opener's: img2dataset tries everything again, 404s too, without a pause
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=config.respect_opt_out,
    )


def _records(stem: Path, animated: set[str]) -> Records:
    """Return img2dataset's records by place, with each image's place in the tar."""
    offsets = _image_places(f"{stem}.tar")
    records = pq.read_table(f"{stem}.parquet").to_pylist()
    for record in records:
        record["image_offset"], record["image_size"] = offsets.get(record["key"], (None, None))
        record["animated"] = record["sha256"] in animated
    return {record["place"]: record for record in records}


def _image_places(path: str) -> dict[str, tuple[int, int]]:
    """Return (offset, size) [bytes] of the images in a tar that img2dataset wrote, by key.

    Only what that writes is understood: names and sizes that the plain header holds (POSIX ustar).
    `tarfile` would take 8% of the whole download's time to read the times in extended headers.
    """
    places = {}
    with Path(path).open("rb") as tar:
        place = 0
        while len(header := tar.read(_BLOCK)) == _BLOCK and header[0]:
            size = int(header[124:136].rstrip(b"\0 "), 8)
            key, _, extension = header[:100].rstrip(b"\0").partition(b".")
            if header[156:157] == tarfile.REGTYPE and extension != b"json":
                places[key.decode()] = (place + _BLOCK, size)
            place += _BLOCK + -(-size // _BLOCK) * _BLOCK
            tar.seek(place)
    return places
