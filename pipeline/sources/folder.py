"""The `folder` source: a folder of images and, optionally, a table of captions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from pipeline.settings import ConfigError, Settings
from pipeline.sources.row import (
    MARK,
    SPLIT_PATTERN,
    Row,
    as_scalar,
    as_text,
    captions_of,
    check_kept,
    clean_text,
)
from pipeline.sources.tables import MALFORMED, Layout, check_columns, file_format, read_rows

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class FolderConfig(Settings):
    """Images on this machine's disk, with a caption table."""

    kind: Literal["folder"] = "folder"
    images: str = Field(description="folder of the images, searched recursively")
    captions: str | None = Field(
        None,
        description="table of captions (csv, tsv, jsonl, parquet); rows of an image are pooled",
    )
    image_column: str = Field("image", description="column of the image's path inside the folder")
    caption_columns: list[str] = Field(["caption"], description="columns of captions")
    keep_columns: list[str] = Field([], description="metadata columns; an image's first row wins")
    split: str = Field("train", pattern=SPLIT_PATTERN, description="split of all images")

    @field_validator("keep_columns")
    @classmethod
    def _own_names(cls, columns: list[str]) -> list[str]:
        check_kept(columns)
        return columns


class FolderSource:
    """One row per image file, by path, then one per table entry whose file is missing."""

    in_place: bool = False

    def __init__(self, config: FolderConfig) -> None:
        self.config = config
        self._root = Path(config.images).expanduser()
        self.local_root: str | None = str(self._root.resolve())
        columns = [config.image_column, *config.caption_columns, *config.keep_columns]
        self._columns = list(dict.fromkeys(columns))

    def check(self) -> None:
        """Raise `ConfigError` for a missing folder, table or column, or a folder without images."""
        if not self._root.is_dir():
            raise ConfigError(f"source.images: {self.config.images} is not a folder")
        if not self._files():
            raise ConfigError(f"source.images: no file under {self.config.images} is an image")
        if self.config.captions is None:
            return
        if not Path(self.config.captions).expanduser().is_file():
            raise ConfigError(f"source.captions: {self.config.captions} is not a file")
        layout = Layout(file_format(self.config.captions))
        check_columns(self.config.captions, layout, self._columns)

    def fingerprint(self) -> str:
        """Return a digest of the config and of each file's size and modification time."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        files = [*self._files()]
        if self.config.captions:
            files.append(Path(self.config.captions).expanduser())
        for path in files:
            status = path.stat()
            digest.update(os.fsencode(path))
            digest.update(f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Yield the images by path with their captions pooled, then what could not be matched."""
        entries, malformed = self._caption_table()
        for path in self._files():
            name = path.relative_to(self._root).as_posix()
            # A file name need not be Unicode; a URL in a table must.
            error = "bad_url" if clean_text(name) != name else None
            status = path.stat()
            mark = f"{status.st_size},{status.st_mtime_ns}"
            yield {**self._row(name, entries.pop(name, {}), error), MARK: mark}
        for name, entry in entries.items():
            yield self._row(name or None, entry, "missing_file" if name else "missing_url")
        for _ in range(malformed):
            yield self._row(None, {}, "malformed_row")

    def fetch_url(self, url: str) -> str:
        """Return the `file://` URL of a row's path inside the folder."""
        return (self._root / url).resolve().as_uri()

    def serve(self) -> AbstractContextManager[None]:
        """Return an empty context: the images are on disk."""
        return nullcontext()

    def _files(self) -> list[Path]:
        found = (p for p in self._root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return sorted(path for path in found if path.is_file())

    def _row(self, name: str | None, entry: dict[str, Any], error: str | None) -> Row:
        return {
            "url": clean_text(name) if name else None,
            "captions": entry.get("captions", []),
            "split": self.config.split,
            "row_error": error or entry.get("error"),
            **{column: entry.get(column) for column in self.config.keep_columns},
        }

    def _caption_table(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return an entry per image named in the table, and the number of unreadable rows."""
        entries: dict[str, dict[str, Any]] = {}
        malformed = 0
        config = self.config
        if config.captions is None:
            return entries, 0
        layout = Layout(file_format(config.captions))
        for raw in read_rows(config.captions, layout, self._columns):
            if raw is MALFORMED:
                malformed += 1
                continue
            name = as_text(raw[config.image_column] or "")
            entry = entries.setdefault(name, {"captions": [], "error": None})
            captions, wrong = captions_of(*(raw[column] for column in config.caption_columns))
            entry["captions"] += captions
            entry["error"] = entry["error"] or wrong
            for column in config.keep_columns:
                entry.setdefault(column, as_scalar(raw[column]))
        return entries, malformed
