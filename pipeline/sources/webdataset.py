"""The `webdataset` source: images that are in tars already, such as img2dataset's own shards.

Beside each of its tars img2dataset writes a `.parquet` that lists every row of the original list,
the failed ones too. Where it is there, rows come from it and the tar is not opened until a worker
adopts its part; else rows come from the tar's own members, which are walked here, several tars at
a time (a remote tar is streamed once for that).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import PurePosixPath
from typing import Any, Final, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from pipeline.schema import IMAGE_EXTENSIONS
from pipeline.settings import ConfigError, Settings
from pipeline.sources.row import (
    MARK,
    SPLIT_PATTERN,
    Row,
    as_scalar,
    as_sha256,
    as_text,
    captions_of,
    check_kept,
    clean_text,
    is_null,
    split_error,
)
from pipeline.sources.tables import Layout, check_columns, expand, file_mark, hint_of
from pipeline.sources.tar import Member, Sample, open_tar, samples

#: Extensions of images in tars: those of our shards, and webdataset's second name for JPEG.
EXTENSIONS: Final = (*IMAGE_EXTENSIONS, "jpeg")

_MAX_TEXT: Final = 1 << 20  # bytes of a caption or metadata member
_READERS: Final = 8  # tars (or their sidecars) that are read at once
_SUCCESS = "success"
_PEEK: Final = 100  # samples whose keys are looked at before any work


class WebdatasetConfig(Settings):
    """Existing WebDataset tars, with img2dataset's sidecar tables where they have them."""

    kind: Literal["webdataset"] = "webdataset"
    paths: str | list[str] = Field(
        description="tars: paths, globs, fsspec URLs or brace lists such as {00000..00331}.tar"
    )
    url_column: str = Field("url", description="sidecar column or JSON key of the image URL")
    caption_columns: list[str] = Field(
        ["caption"], description="sidecar columns or JSON keys of captions; .txt members always are"
    )
    keep_columns: list[str] = Field(
        [], description="sidecar columns or JSON keys to carry into the shards"
    )
    split: str = Field("train", pattern=SPLIT_PATTERN, description="split of all images")
    split_column: str | None = Field(
        None, description="sidecar column or JSON key of each image's split; null: `split` for all"
    )
    max_member_bytes: int = Field(
        64 << 20, ge=1, description="larger images in the tars are refused unread [bytes]"
    )

    @field_validator("keep_columns")
    @classmethod
    def _own_names(cls, columns: list[str]) -> list[str]:
        check_kept(columns)
        return columns


class WebdatasetSource:
    """One row per sidecar entry or sample, tar by tar."""

    in_place: bool = True
    local_root: str | None = None

    def __init__(self, config: WebdatasetConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Raise `ConfigError` for a path without tars, a compressed tar, or a missing column."""
        first = self._tars()[0]
        if _has_sidecar(first):
            self._check_sidecar(_sidecar(first))
        else:
            self._check_members(first)

    def fingerprint(self) -> str:
        """Return a digest of the config and of each tar's and sidecar's size and change mark."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        files = [name for tar in self._tars() for name in (tar, _sidecar(tar))]
        with ThreadPoolExecutor(_READERS) as pool:
            for name, mark in zip(files, pool.map(file_mark, files), strict=True):
                digest.update(f"{name}|{mark}\n".encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Yield the rows of each tar in turn."""
        with ThreadPoolExecutor(_READERS) as pool:
            pending: deque[Future[list[Row]]] = deque()
            try:
                for tar in self._tars():
                    pending.append(pool.submit(self._tar_rows, tar))
                    if len(pending) > _READERS:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def fetch_url(self, url: str) -> str:
        """Return `url`: nothing is fetched."""
        return url

    def serve(self) -> AbstractContextManager[None]:
        """Return an empty context: the images are in the tars."""
        return nullcontext()

    def _tars(self) -> list[str]:
        tars = expand(self.config.paths, braces=True)
        for tar in tars:
            if not tar.endswith(".tar"):
                raise ConfigError(
                    f"source.paths: {tar} is no .tar; images are read in place, by their offsets, "
                    "so compressed archives must be unpacked first"
                )
        return tars

    def _check_sidecar(self, path: str) -> None:
        config = self.config
        wanted = [config.url_column, *config.caption_columns, *config.keep_columns]
        wanted += [config.split_column] if config.split_column else []
        check_columns(path, Layout("parquet"), list(dict.fromkeys(wanted)))

    def _check_members(self, tar: str) -> None:
        """Raise `ConfigError` if a key that the config names is in none of the first samples."""
        config = self.config
        named = [*config.keep_columns, *([config.split_column] if config.split_column else [])]
        # The usual names may be absent: captions are in .txt members too, URLs nowhere.
        usual = WebdatasetConfig(paths=config.paths)
        named += config.caption_columns if config.caption_columns != usual.caption_columns else []
        named += [config.url_column] if config.url_column != usual.url_column else []
        found: set[str] = set()
        with open_tar(tar) as file:
            for sample in itertools.islice(samples(file), _PEEK):
                with suppress(ValueError, RecursionError):
                    found.update(_read_texts(file, sample)[0])
        for name in named if found else ():
            if name not in found:
                hint = hint_of(name, found)
                raise ConfigError(
                    f"{tar}: no JSON member of its first {_PEEK} samples has {name!r}; {hint}they "
                    f"have {', '.join(sorted(found))}"
                )

    def _tar_rows(self, tar: str) -> list[Row]:
        rows = list(self._listed(tar) if _has_sidecar(tar) else self._found(tar))
        mark = file_mark(tar)
        return [{**row, MARK: mark} for row in rows]

    def _listed(self, tar: str) -> Iterator[Row]:
        """Yield the rows of a tar's sidecar; the images' places stay open until adoption."""
        self._check_sidecar(_sidecar(tar))
        seen: set[str] = set()
        with fsspec.open(_sidecar(tar), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches():
                for entry in batch.to_pylist():
                    key = as_text(entry["key"])
                    row = self._row(tar, key, entry, captions=[])
                    if entry["status"] != _SUCCESS:
                        message = entry.get("error_message")
                        row["stored"]["error"] = str(message or entry["status"])
                    elif key in seen:
                        row["row_error"] = "duplicate_key"
                    seen.add(key)
                    yield row

    def _found(self, tar: str) -> Iterator[Row]:
        """Yield a row per sample of a tar, with its image's place, and per damaged place."""
        with open_tar(tar) as file:
            for sample in samples(file):
                yield self._sample_row(tar, file, sample)

    def _sample_row(self, tar: str, file: Any, sample: Sample) -> Row:
        image = next((m for name, m in sample.members.items() if name in EXTENSIONS), None)
        error = sample.error or ("missing_image" if image is None else None)
        if error is None and image is not None and image.size > self.config.max_member_bytes:
            error = "oversized_member"
        entry: dict[str, Any] = {}
        captions: list[str] = []
        if error is None:
            try:
                entry, captions = _read_texts(file, sample)
            except (ValueError, RecursionError):
                error = "malformed_row"
        row = self._row(tar, sample.key or "", entry, captions)
        row["row_error"] = error = error or row["row_error"]
        if error is None and image is not None:
            row["stored"] |= {"offset": image.offset, "size": image.size}
        return row

    def _row(self, tar: str, key: str, entry: dict[str, Any], captions: list[str]) -> Row:
        config = self.config
        named, wrong = captions_of(*(entry.get(name) for name in config.caption_columns))
        url = entry.get(config.url_column)
        split = config.split
        if config.split_column is not None and entry:
            given = entry.get(config.split_column)
            split = split if is_null(given) else as_text(given)
        error = split_error(split) or wrong
        place = f"{PurePosixPath(tar).name}/{key}"
        return {
            "url": clean_text(place if is_null(url) else as_text(url)),
            "captions": list(dict.fromkeys([*named, *captions])),
            "split": config.split if error else split,
            "row_error": error,
            "stored": {
                "tar": tar,
                "key": clean_text(key),
                "offset": None,
                "size": None,
                "error": None,
                "sha256": as_sha256(entry.get("sha256")),
                "original_width": _pixels(entry.get("original_width")),
                "original_height": _pixels(entry.get("original_height")),
            },
            **{name: as_scalar(entry.get(name)) for name in config.keep_columns},
        }


def _sidecar(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.parquet"


def _has_sidecar(tar: str) -> bool:
    """Return whether img2dataset's table lies beside a tar; raises `ConfigError` if damaged."""
    path = _sidecar(tar)
    fs, name = fsspec.core.url_to_fs(path)
    if not fs.exists(name):
        return False
    try:
        with fs.open(name, "rb") as file:
            names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise ConfigError(
            f"source.paths: {path} is damaged ({error}); delete it to have the tar's own members "
            "listed, without the rows that failed"
        ) from error
    return {"key", "status"} <= set(names)


def _read_texts(file: Any, sample: Sample) -> tuple[dict[str, Any], list[str]]:
    """Return a sample's JSON object and `.txt` caption; raises `ValueError` for a broken one."""
    entry: Any = {}
    captions: list[str] = []
    if member := sample.members.get("json"):
        entry = json.loads(_read_text(file, member))
        if not isinstance(entry, dict):
            raise ValueError("the JSON member holds no object")
    if member := sample.members.get("txt"):
        captions, _ = captions_of(_read_text(file, member))
    return entry, captions


def _read_text(file: Any, member: Member) -> bytes:
    if member.size > _MAX_TEXT:
        raise ValueError(f"{member.name} holds {member.size} bytes")
    file.seek(member.offset)
    return bytes(file.read(member.size))


def _pixels(value: Any) -> int | None:
    """Return a side as 32-bit pixels; JSON and pandas may have made it a float, or nonsense."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 2**31:
        return int(value)
    return None
