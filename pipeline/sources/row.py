"""What every source yields, and how a raw row becomes it.

Nothing is dropped here: a row that cannot be fetched keeps its place and carries a `row_error`
from the closed list `ROW_ERRORS`, so that every count downstream adds up to the source's rows.
"""

from __future__ import annotations

import html
import json
import math
import re
import string
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol
from urllib.parse import quote, unquote_plus, urlsplit, urlunsplit

import pyarrow as pa

from pipeline.schema import META_PREFIX

#: Columns every source yields; the metadata columns that its config keeps follow them.
SOURCE_COLUMNS: Final = ("url", "captions", "split", "row_error")

#: Columns that some sources add, and that the stage which obtains the images uses up.
#: `expected_sha256`: hex digest that the list gives for the original image file.
#: `stored`: where an image already lies in a tar, and what is known of it.
#: A failed fetch has its `error`, and an image whose place is not known yet has no `offset`.
OBTAIN_COLUMNS: Final[dict[str, pa.DataType]] = {
    "expected_sha256": pa.string(),
    "stored": pa.struct(
        [
            ("tar", pa.string()),  # full path or URL
            ("key", pa.string()),  # webdataset's sample key
            ("offset", pa.int64()),  # first byte of the image in the tar
            ("size", pa.int64()),  # bytes
            ("error", pa.string()),  # as img2dataset recorded it
            ("sha256", pa.string()),  # of the original image file
            ("original_width", pa.int32()),  # pixels before img2dataset resized it
            ("original_height", pa.int32()),
        ]
    ),
}
#: A row's key, taken out when the source is cut, of what tells that the file of its image changed.
MARK: Final = "_mark"
#: Beyond it a 64-bit float does not hold every integer.
FLOAT_HOLDS: Final = 2**53
_OWN_COLUMNS: Final = (*SOURCE_COLUMNS, *OBTAIN_COLUMNS, MARK)

ROW_ERRORS: Final = {
    "missing_url": "the row has no URL",
    "bad_url": "the URL is not http(s) with a host, or holds control characters",
    "bad_split": "the split is no short name of letters, digits, dots, - and _",
    "bad_caption": "a caption is neither a text nor a list of texts, but an object, say",
    "malformed_row": "the line could not be parsed, or has another number of fields",
    "missing_file": "the caption table names an image that the folder does not hold",
    "missing_image": "the sample in the tar has no image, or the tar lacks a listed sample",
    "duplicate_key": "an earlier sample of the tar has the same key",
    "damaged_tar": "the tar is cut short or damaged here",
    "bad_name": "the member's name is absolute, holds `..`, or is not printable text",
    "oversized_member": "the member is larger than `source.max_member_bytes`",
}

Row = dict[str, Any]

# C0 and C1 controls, and surrogates (which UTF-8 cannot hold).
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"<[^<>]*>")
# A split names shard files, so it must not hold a path.
SPLIT_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"


class Source(Protocol):
    """A list of image-text pairs.

    `in_place`: whether the images are in tars already and are read where they lie, so that nothing
    is downloaded. `local_root`: absolute path of the only folder whose files `fetch_url` may name
    with `file:`; None if no file may be read.
    """

    in_place: bool
    local_root: str | None

    def check(self) -> None:
        """Raise `ConfigError` if the source cannot be read as configured (before work starts)."""

    def fingerprint(self) -> str:
        """Return a digest that changes when the source's rows may have changed."""

    def rows(self) -> Iterator[Row]:
        """Yield rows with `SOURCE_COLUMNS` and metadata, in an order that never changes."""

    def fetch_url(self, url: str) -> str:
        """Return the URL to fetch for a row's recorded `url`."""

    def serve(self) -> AbstractContextManager[None]:
        """Return a context in which the images can be fetched."""


def clean_text(text: str) -> str:
    """Return `text` with runs of control characters replaced by one space, ends stripped."""
    return _CONTROLS.sub(" ", text).strip()


def captions_of(*cells: Any) -> tuple[list[str], str | None]:
    """Return the captions in cells, blanks left out, and `bad_caption` if a cell holds others.

    A cell is a text, a list of texts, or null; numbers are taken for text. Python's spelling of an
    object would pass every filter and be trained on.
    """
    texts: list[str] = []
    for cell in cells:
        for value in cell if isinstance(cell, (list, tuple)) else [cell]:
            if is_null(value):
                continue
            if isinstance(value, bool) or not isinstance(value, (str, bytes, int, float)):
                return [], "bad_caption"
            if text := clean_text(as_text(value)):
                texts.append(text)
    return texts, None


def as_text(value: Any) -> str:
    """Return a cell as text; invalid UTF-8 in a binary cell becomes U+FFFD."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def as_sha256(value: Any) -> str | None:
    """Return a cell as 64 lower-case hex digits, or None if it is no SHA-256."""
    text = "" if is_null(value) else as_text(value).strip().lower()
    return text if _SHA256.fullmatch(text) else None


def plain_text(markup: str) -> str:
    """Return text of Flickr's metadata dumps without its encoding.

    YFCC100M's titles and descriptions are percent-encoded with `+` for spaces, and hold HTML.
    """
    return " ".join(html.unescape(_TAG.sub(" ", unquote_plus(markup))).split())


def is_null(value: Any) -> bool:
    """Return whether a cell is missing; pandas writes that as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def url_error(url: str | None) -> str | None:
    """Return why a URL can't be fetched (a key of `ROW_ERRORS`), or None."""
    if url is None or not url.strip():
        return "missing_url"
    if _CONTROLS.search(url) or " " in url.strip():
        return "bad_url"
    try:
        parts = urlsplit(url.strip())
        sound = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        sound = False
    return None if sound else "bad_url"


def ascii_url(url: str) -> str:
    """Return a sound URL as a request sends it: percent-encoded, its host in IDNA.

    urllib sends ASCII only; browsers, and so the lists, have other letters too.
    """
    if url.isascii():
        return url
    parts = urlsplit(url)
    try:
        host = parts.netloc.encode("idna").decode()
    except UnicodeError:  # no such host can exist; fetching it says so
        return url
    rest = [quote(part, safe=string.punctuation) for part in parts[2:]]
    return urlunsplit((parts.scheme, host, *rest))


def split_error(split: str) -> str | None:
    """Return why a split can't name shards (a key of `ROW_ERRORS`), or None."""
    return None if re.match(SPLIT_PATTERN, split) and not split.endswith("\n") else "bad_split"


def check_kept(columns: Sequence[str]) -> None:
    """Raise `ValueError` if a metadata column has the name of a column of our own."""
    for name in columns:
        if name in _OWN_COLUMNS:
            raise ValueError(
                f"keep_columns: {name!r} is a name of our own ({', '.join(_OWN_COLUMNS)}); "
                "URL, captions and split are kept in any case"
            )


def as_scalar(value: Any) -> Any:
    """Return a metadata cell as a JSON scalar; nested values become JSON text.

    NaN and infinity, which JSON lacks, become null; integers beyond 64 bits become text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, bytes)):
        return clean_text(as_text(value))
    if not isinstance(value, (list, tuple, dict)):
        return clean_text(str(value))  # a date, a decimal
    return clean_text(json.dumps(_finite(value), sort_keys=True, default=str))


def _finite(value: Any) -> Any:
    """Return a nested value with null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_table(rows: Sequence[Row], meta_types: dict[str, pa.DataType]) -> pa.Table:
    """Return rows as an Arrow table.

    `SOURCE_COLUMNS`, those of `OBTAIN_COLUMNS` that any row has, then `meta.<name>` columns.
    """
    obtain = [name for name in OBTAIN_COLUMNS if any(name in row for row in rows)]
    fields = [
        pa.field("url", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("split", pa.string()),
        pa.field("row_error", pa.string()),
        *(pa.field(name, OBTAIN_COLUMNS[name]) for name in obtain),
        *(pa.field(META_PREFIX + name, kind) for name, kind in meta_types.items()),
    ]
    names = [*SOURCE_COLUMNS, *obtain, *meta_types]
    arrays = [
        pa.array([cast(row.get(name), field.type) for row in rows], field.type)
        for name, field in zip(names, fields, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _is_wide(value: Any) -> bool:
    """Return whether a value is an integer, such as an id, that a float cannot hold."""
    return isinstance(value, int) and abs(value) > FLOAT_HOLDS


def meta_types(rows: Sequence[Row]) -> dict[str, pa.DataType]:
    """Return a type per metadata column that holds all of `rows`: bool, int, float or string."""
    types: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key not in _OWN_COLUMNS):
        kinds = {type(row[name]) for row in rows if row.get(name) is not None}
        if kinds == {bool}:
            types[name] = pa.bool_()
        elif kinds == {int}:
            types[name] = pa.int64()
        elif kinds and kinds <= {int, float} and not any(_is_wide(row.get(name)) for row in rows):
            types[name] = pa.float64()
        else:
            types[name] = pa.string()
    return types


def cast(value: Any, kind: pa.DataType) -> Any:
    """Return a value as the type that `meta_types` found for its column."""
    if value is None or pa.types.is_nested(kind):
        return value
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else str(value)
    return float(value) if pa.types.is_floating(kind) else value
