"""The `urls` source: every line of a list is one row, and says itself why it can't be fetched."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import ConfigError, build
from pipeline.sources.row import (
    OBTAIN_COLUMNS,
    ROW_ERRORS,
    SOURCE_COLUMNS,
    meta_types,
    to_table,
    url_error,
)
from pipeline.sources.urls import UrlsConfig, UrlsSource
from pipeline.stages.failures import FAILURES


def source(path: Path, **options: Any) -> UrlsSource:
    return UrlsSource(build(UrlsConfig, {"paths": str(path), **options}))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://h/a.jpg", None),
        ("HTTPS://h:8080/a?b=c#d", None),
        ("  https://h/padded  ", None),
        ("http://[::1]/a", None),
        ("https://bücher.example/é.jpg", None),
        (None, "missing_url"),
        ("", "missing_url"),
        ("   ", "missing_url"),
        ("file:///etc/passwd", "bad_url"),
        ("javascript:alert(1)", "bad_url"),
        ("data:image/png;base64,AAAA", "bad_url"),
        ("ftp://h/a.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http:///a.jpg", "bad_url"),
        ("http://:80/a.jpg", "bad_url"),
        ("//h/a.jpg", "bad_url"),
        ("a.jpg", "bad_url"),
        ("http://h/a b.jpg", "bad_url"),
        ("http://h/a\nb.jpg", "bad_url"),
        ("http://h/a\x00.jpg", "bad_url"),
        ("http://[::1/a", "bad_url"),
        ("http://h/\ud800", "bad_url"),
    ],
)
def test_urls_that_cannot_be_fetched(url: str | None, error: str | None) -> None:
    assert url_error(url) == error


def test_a_list_becomes_rows(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "list.jsonl",
        [
            {"u": "http://h/1", "alt": "one", "more": ["two", None, " "], "fold": "test", "n": 1},
            {"u": " http://h/2 ", "alt": None, "more": "tab\there\x00", "n": 2.5},
            {"u": "file:///etc/passwd", "alt": "x", "fold": ""},
            {"u": None, "alt": 7, "fold": "../../up"},
            {"u": "http://h/5", "fold": "../../up", "n": {"b": [1], "a": None}},
        ],
    )
    path.write_text(path.read_text() + "{broken\n")
    rows = list(
        source(
            path,
            url_column="u",
            caption_columns=["alt", "more"],
            split_column="fold",
            split="val",
            keep_columns=["n"],
        ).rows()
    )
    columns = ("url", "captions", "split", "row_error", "n")
    assert [tuple(row.get(name) for name in columns) for row in rows] == [
        ("http://h/1", ["one", "two"], "test", None, 1),
        ("http://h/2", ["tab here"], "val", None, 2.5),
        ("file:///etc/passwd", ["x"], "val", "bad_url", None),
        (None, ["7"], "val", "missing_url", None),
        ("http://h/5", [], "val", "bad_split", '{"a": null, "b": [1]}'),
        (None, [], "val", "malformed_row", None),
    ]


def test_rows_of_several_files_keep_their_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        jsonl(tmp_path / f"{name}.jsonl", [{"url": f"http://{name}/{n}"} for n in range(2)])
    rows = source(tmp_path / "*.jsonl").rows()
    assert [row["url"] for row in rows] == [f"http://{h}/{n}" for h in "ab" for n in range(2)]


def test_pandas_habits(tmp_path: Path) -> None:
    """NaN is a missing cell; bytes are text; integers may be wide."""
    path = jsonl(
        tmp_path / "list.jsonl",
        [
            {"url": float("nan"), "caption": float("nan"), "s": float("nan"), "x": float("nan")},
            {"url": "http://h/1", "caption": "a", "s": None, "x": 2**70},
        ],
    )
    rows = list(source(path, split_column="s", keep_columns=["x"]).rows())
    assert [row["row_error"] for row in rows] == ["missing_url", None]
    assert [row["captions"] for row in rows] == [[], ["a"]]
    assert [row["split"] for row in rows] == ["train", "train"]
    assert [row["x"] for row in rows] == [None, str(2**70)]
    table = pa.table({"url": [b"http://h/1"], "caption": [b"caf\xe9"]})
    pq.write_table(table, tmp_path / "list.parquet")
    (row,) = source(tmp_path / "list.parquet").rows()
    assert (row["url"], row["captions"]) == ("http://h/1", ["caf\ufffd"])
    # Bytes that a writer stored as strings, unchecked.
    bad = pa.Array.from_buffers(pa.string(), 1, [None, *pa.array([b"caf\xe9"]).buffers()[1:]])
    lists = pa.ListArray.from_arrays([0, 1], bad)
    for captions in (bad, lists):
        table = pa.table({"url": ["http://h/1"], "caption": captions})
        pq.write_table(table, tmp_path / "list.parquet")
        (row,) = source(tmp_path / "list.parquet").rows()
        assert (row["url"], row["captions"]) == ("http://h/1", ["caf\ufffd"])


def test_kept_values_that_json_lacks(tmp_path: Path) -> None:
    """Dates and decimals are text without quotes; nested NaN is null."""
    kept = {
        "day": [datetime.date(2020, 1, 2)],
        "price": [decimal.Decimal("1.50")],
        "nested": [[1.0, float("nan")]],
    }
    table = pa.table({"url": ["http://h/1"], "caption": ["a"], **kept})
    pq.write_table(table, tmp_path / "list.parquet")
    (row,) = source(tmp_path / "list.parquet", keep_columns=list(kept)).rows()
    assert [row[name] for name in kept] == ["2020-01-02", "1.50", "[1.0, null]"]


def test_check_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "list.jsonl", [{"url": "http://h", "alt": "a"}])
    with pytest.raises(ConfigError, match=r"no column 'caption'"):
        source(path).check()
    with pytest.raises(ConfigError, match=r"no column 'fold'"):
        source(path, caption_columns=["alt"], split_column="fold").check()
    with pytest.raises(ConfigError, match="names no file"):
        source(tmp_path / "none.csv").check()
    source(path, caption_columns=["alt"], keep_columns=["alt"]).check()


def test_expected_hashes_are_carried_apart_from_metadata(tmp_path: Path) -> None:
    digest = "AB" * 32
    values = [digest, " " + digest.lower() + " ", "short", None, float("nan"), 7]
    path = jsonl(tmp_path / "a.jsonl", [{"url": "http://h", "caption": "", "h": v} for v in values])
    path.write_text(path.read_text() + "{broken\n")
    rows = list(source(path, sha256_column="h").rows())
    table = to_table(rows, meta_types(rows))
    assert table["expected_sha256"].to_pylist() == [*[digest.lower()] * 2, *[None] * 5]
    assert not [name for name in table.column_names if name.startswith("meta.")]
    plain = list(source(path).rows())
    assert "expected_sha256" not in to_table(plain, meta_types(plain)).column_names
    with pytest.raises(ConfigError, match="no column 'sha'"):
        source(path, sha256_column="sha").check()


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("a dog", ["a dog"]),
        (["a dog", " ", None, "a cat"], ["a dog", "a cat"]),
        (7, ["7"]),
        (None, []),
        ([{"raw": "A dog runs."}], None),
        ({"raw": "A dog runs."}, None),
        ([["a dog", "b"]], None),
        (True, None),
    ],
)
def test_a_caption_is_text_and_never_a_spelled_out_object(
    cell: Any, captions: list[str] | None, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "list.jsonl", [{"url": "http://h/a", "caption": cell}])
    (row,) = source(path).rows()
    assert row["captions"] == (captions or [])
    assert row["row_error"] == (None if captions is not None else "bad_caption")


def test_flickr_captions_are_unwrapped(tmp_path: Path) -> None:
    wrapped = "My+Dog%27s+%3Cb%3Ebig%3C%2Fb%3E+day+%26amp%3B+night%0A100%25+3+%3C+4"
    path = jsonl(tmp_path / "a.jsonl", [{"url": "http://h", "caption": wrapped}])
    (row,) = source(path, caption_markup="flickr").rows()
    assert row["captions"] == ["My Dog's big day & night 100% 3 < 4"]
    (row,) = source(path).rows()
    assert row["captions"] == [wrapped]


@pytest.mark.parametrize("name", [*SOURCE_COLUMNS, *OBTAIN_COLUMNS])
def test_metadata_cannot_replace_a_column_of_our_own(name: str) -> None:
    with pytest.raises(ConfigError, match=f"keep_columns: '{name}' is a name of our own"):
        build(UrlsConfig, {"paths": "a.csv", "keep_columns": [name]})


@pytest.mark.parametrize("split", ["../up", "a/b", "", ".hidden", "a b", "train\n", "x" * 65])
def test_a_split_that_cannot_name_a_file_is_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(ConfigError, match="split"):
        build(UrlsConfig, {"paths": "a.csv", "split": split})
    path = jsonl(tmp_path / "list.jsonl", [{"url": "http://h", "caption": "a", "s": split}])
    (row,) = source(path, split_column="s").rows()
    assert row["split"] == "train"
    assert row["row_error"] == ("bad_split" if split else None)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://h/a%20b?c=d&e=%C3%A9#f", "http://h/a%20b?c=d&e=%C3%A9#f"),
        ("http://h/é/雨.jpg?q=ä%20", "http://h/%C3%A9/%E9%9B%A8.jpg?q=%C3%A4%20"),
        ("http://bücher.example:81/x", "http://xn--bcher-kva.example:81/x"),
    ],
)
def test_requests_are_ascii(tmp_path: Path, url: str, sent: str) -> None:
    assert source(tmp_path / "x.csv").fetch_url(url) == sent


def test_the_fingerprint_follows_files_and_config(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"url": "http://h", "caption": "a"}])
    first = source(path).fingerprint()
    assert source(path).fingerprint() == first
    assert source(path, split="test").fingerprint() != first
    jsonl(path, [{"url": "http://h", "caption": "b"}])
    os.utime(path, (1, 1))  # same size, other time
    second = source(path).fingerprint()
    assert second != first
    jsonl(tmp_path / "b.jsonl", [])
    assert source(tmp_path / "*.jsonl").fingerprint() != source(path).fingerprint()


def test_every_row_error_is_a_permanent_failure() -> None:
    assert {FAILURES[reason][0] for reason in ROW_ERRORS} == {"permanent"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=3,
)
KEYS = st.sampled_from(["url", "caption", "fold", "n"])


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.dictionaries(KEYS, JSON), max_size=6))
def test_whatever_cells_hold_each_line_is_one_row_of_a_table(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = jsonl(tmp_path_factory.getbasetemp() / "any.jsonl", rows)
    found = list(source(path, split_column="fold", keep_columns=["n"]).rows())
    assert len(found) == len(rows)
    assert {row["row_error"] for row in found} <= {None, *ROW_ERRORS}
    table = to_table(found, meta_types(found))
    assert table.num_rows == len(rows)
    for row in table.to_pylist():
        assert row["split"]
        assert (row["row_error"] is None) <= (url_error(row["url"]) is None)
        json.dumps(row, allow_nan=False)  # what is kept fits a sample's JSON member


CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(st.tuples(CELL, CELL), max_size=6), kind=st.sampled_from(["csv", "tsv"]))
def test_whatever_cells_hold_a_well_written_csv_comes_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        delimiter = "\t" if kind == "tsv" else ","
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("url", "caption"), *cells])
    found = list(source(path).rows())
    assert len(found) == len(cells)
    assert [row["row_error"] for row in found] == [
        url_error(url.strip() or None) for url, _ in cells
    ]
