"""The `urls` source: lists of image URLs and captions in parquet, csv, tsv or jsonl files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from pydantic import Field, field_validator

from pipeline.settings import Settings
from pipeline.sources.row import (
    SPLIT_PATTERN,
    Row,
    as_scalar,
    as_sha256,
    as_text,
    ascii_url,
    captions_of,
    check_kept,
    clean_text,
    is_null,
    plain_text,
    split_error,
    url_error,
)
from pipeline.sources.tables import (
    MALFORMED,
    Layout,
    check_columns,
    expand,
    file_format,
    file_mark,
    read_rows,
)


class UrlsConfig(Settings):
    """Lists of URLs with captions."""

    kind: Literal["urls"] = "urls"
    paths: str | list[str] = Field(description="files, globs or fsspec URLs of the lists")
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = Field(
        "auto", description="format of the lists; auto goes by the file extension, .gz allowed"
    )
    columns: list[str] | None = Field(
        None, description="names of the columns of csv or tsv lists without a header line"
    )
    quoted: bool = Field(
        True, description="csv and tsv fields may stand in double quotes; false: quotes are text"
    )
    url_column: str = Field("url", description="column of the image URL")
    caption_columns: list[str] = Field(
        ["caption"], description="columns of alt texts; a column may hold lists of strings"
    )
    caption_markup: Literal["none", "flickr"] = Field(
        "none", description="what captions are wrapped in; flickr: percent-encoding and HTML"
    )
    sha256_column: str | None = Field(
        None, description="column of the SHA-256 (hex) that the original image file must have"
    )
    split_column: str | None = Field(None, description="column that names the split")
    split: str = Field(
        "train", pattern=SPLIT_PATTERN, description="split of rows where split_column is null"
    )
    keep_columns: list[str] = Field(
        [], description="metadata columns to carry into the shards (`annotations` has a meaning)"
    )

    @field_validator("keep_columns")
    @classmethod
    def _own_names(cls, columns: list[str]) -> list[str]:
        check_kept(columns)
        return columns


class UrlsSource:
    """Rows of URL lists, in file order."""

    in_place: bool = False
    local_root: str | None = None

    def __init__(self, config: UrlsConfig) -> None:
        self.config = config
        columns = [config.url_column, *config.caption_columns, *config.keep_columns]
        columns += [name for name in (config.split_column, config.sha256_column) if name]
        self._columns = list(dict.fromkeys(columns))

    def check(self) -> None:
        """Raise `ConfigError` for a missing file or column, or a column named twice."""
        for path in expand(self.config.paths):
            check_columns(path, self._layout(path), self._columns)

    def fingerprint(self) -> str:
        """Return a digest of the config and of each file's size and modification mark."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for path in expand(self.config.paths):
            digest.update(f"{path}|{file_mark(path)}\n".encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Yield one row per line of the lists."""
        for path in expand(self.config.paths):
            for raw in read_rows(path, self._layout(path), self._columns):
                yield self._row(raw)

    def _layout(self, path: str) -> Layout:
        names = tuple(self.config.columns) if self.config.columns else None
        return Layout(file_format(path, self.config.format), names, self.config.quoted)

    def _row(self, raw: Row) -> Row:
        config = self.config
        if raw is MALFORMED:
            return {
                "url": None,
                "captions": [],
                "split": config.split,
                "row_error": "malformed_row",
            }
        url = raw[config.url_column]
        url = None if is_null(url) else as_text(url).strip()
        captions, wrong = captions_of(*(raw[name] for name in config.caption_columns))
        if config.caption_markup == "flickr":
            captions, _ = captions_of([plain_text(text) for text in captions])
        named = raw[config.split_column] if config.split_column else None
        split = config.split if is_null(named) or named == "" else as_text(named)
        error = url_error(url) or split_error(split) or wrong
        column = config.sha256_column
        expected = {"expected_sha256": as_sha256(raw[column])} if column else {}
        return {
            "url": clean_text(url) if url else None,
            "captions": captions,
            "split": config.split if error else split,
            "row_error": error,
            **expected,
            **{name: as_scalar(raw[name]) for name in config.keep_columns},
        }

    def fetch_url(self, url: str) -> str:
        """Return `url` in ASCII: it is fetched as listed."""
        return ascii_url(url)

    def serve(self) -> AbstractContextManager[None]:
        """Return an empty context: somebody else serves the images."""
        return nullcontext()
