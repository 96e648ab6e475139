"""Tables as people have them: every line is one row, whatever it holds."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import ConfigError
from pipeline.sources.row import as_text
from pipeline.sources.tables import (
    FORMATS,
    MALFORMED,
    Layout,
    check_columns,
    expand,
    file_format,
    read_rows,
)

ROWS = [
    {"url": "http://h/1", "caption": "a red star, on grass"},
    {"url": "http://h/2", "caption": 'say "cheese"\nand smile'},
    {"url": "http://h/3", "caption": None},
    {"url": None, "caption": "später — 雨"},
]


def encode(rows: list[dict[str, Any]], kind: str, columns: tuple[str, ...]) -> bytes:
    if kind == "parquet":
        sink = io.BytesIO()
        table = pa.table({c: pa.array([r[c] for r in rows], pa.string()) for c in columns})
        pq.write_table(table, sink)
        return sink.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if kind == "tsv" else ",")
    writer.writerows([columns, *([row[c] for c in columns] for row in rows)])
    return text.getvalue().encode()


def read(path: Path, *columns: str) -> list[dict[str, Any]]:
    return list(read_rows(str(path), Layout(file_format(str(path))), columns or ("url", "caption")))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_say_the_same(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"list.{kind}", encode(ROWS, kind, ("caption", "url")))
    check_columns(str(path), Layout(kind), ["url", "caption"])
    assert read(path) == ROWS


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_lists(tmp_path: Path, kind: str, pack: Any) -> None:
    suffix = "gz" if pack is gzip.compress else "bz2"
    data = pack(encode(ROWS, kind, ("url", "caption")))
    path = write(tmp_path / f"list.{kind}.{suffix}", data)
    check_columns(str(path), Layout(file_format(str(path))), ["url"])
    assert read(path) == ROWS


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"l.{kind}", b"\xef\xbb\xbf" + encode(ROWS, kind, ("url", "caption")))
    check_columns(str(path), Layout(kind), ["url", "caption"])
    assert read(path) == ROWS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("a.b.tsv.gz", "tsv"),
        ("s3://bucket/x.ndjson", "jsonl"),
        ("a.json.gz", "jsonl"),
        ("part-0.snappy.parquet", "parquet"),
    ],
)
def test_the_format_goes_by_the_extension(name: str, kind: str) -> None:
    assert file_format(name) == kind
    assert file_format(name, "tsv") == "tsv"


@pytest.mark.parametrize("name", ["list", "list.txt", "list.gz", "list.CSV2"])
def test_an_unknown_extension_asks_for_the_format(name: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.format"):
        file_format(name)


def test_globs_are_sorted_and_lists_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.tsv", "odd [1].csv"):
        write(tmp_path / name, "url\n")
    names = [Path(p).name for p in expand([str(tmp_path / "*.tsv"), str(tmp_path / "*.csv")])]
    assert names == ["c.tsv", "a.csv", "b.csv", "odd [1].csv"]
    assert [Path(p).name for p in expand(str(tmp_path / "odd [1].csv"))] == ["odd [1].csv"]


@pytest.mark.parametrize("name", ["none.csv", "*.csv"])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="names no file"):
        expand(str(tmp_path / name))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_missing_column_names_the_nearest(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"list.{kind}", encode(ROWS, kind, ("url", "caption")))
    with pytest.raises(ConfigError, match=r"no column 'captions'; did you mean 'caption'\?"):
        check_columns(str(path), Layout(kind), ["url", "captions"])


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "url,caption,url\na,b,c\n")
    with pytest.raises(ConfigError, match="'url' more than once"):
        check_columns(str(path), Layout("csv"), ["caption"])
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, ["url", "url"])
    pq.write_table(twice, tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match="'url' more than once"):
        check_columns(str(tmp_path / "list.parquet"), Layout("parquet"), ["url"])


@pytest.mark.parametrize("name", ["list.parquet", "list.csv.gz", "folder.csv"])
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path, name: str) -> None:
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    else:
        write(tmp_path / name, "neither")
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        check_columns(str(tmp_path / name), Layout(file_format(name)), ["url"])


@pytest.mark.parametrize("text", ["", "\n", "url,caption\n", "url,caption"])
def test_lists_without_rows(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "list.csv", text)
    if text.startswith("url"):
        assert read(path) == []
    else:
        with pytest.raises(ConfigError, match="has no column"):
            check_columns(str(path), Layout("csv"), ["url"])


def test_csv_oddities_keep_their_rows(tmp_path: Path) -> None:
    huge = "very " * 20_000
    lines = [
        b"url,caption",
        b"u1,caf\xe9",
        b"",
        b"u2," + huge.encode(),
        b"u3,a\x00b\x07c",
        b'u4,"two\r\nlines, and a comma"',
        b"u5",
        b"u6,a,b",
        b'u7,"a ""quoted"" word"',
        b'u8,12" pizza',
        b"u9,",
    ]
    rows = read(write(tmp_path / "list.csv", b"\r\n".join(lines)))
    assert rows == [
        {"url": "u1", "caption": "caf\ufffd"},
        {"url": "u2", "caption": huge},
        {"url": "u3", "caption": "a\x00b\x07c"},
        {"url": "u4", "caption": "two\r\nlines, and a comma"},
        MALFORMED,
        MALFORMED,
        {"url": "u7", "caption": 'a "quoted" word'},
        {"url": "u8", "caption": '12" pizza'},
        {"url": "u9", "caption": None},
    ]


@pytest.mark.parametrize(
    "bad",
    ['u1,"never closed', 'u1,"closed" early', '"u1,a', 'u1,"'],
)
def test_an_unbalanced_quote_costs_its_own_row_only(tmp_path: Path, bad: str) -> None:
    good = [f'u{n},"caption, {n}"' for n in range(2, 1500)]
    rows = read(write(tmp_path / "list.csv", "\n".join(["url,caption", bad, *good])))
    assert rows[0] is MALFORMED
    assert rows[1:] == [{"url": f"u{n}", "caption": f"caption, {n}"} for n in range(2, 1500)]


def test_an_unbalanced_quote_before_plain_rows_does_not_swallow_the_file(tmp_path: Path) -> None:
    plain = [f"u{n},caption {n}" for n in range(1500)]
    rows = read(write(tmp_path / "list.csv", "\n".join(["url,caption", 'u,"oops', *plain])))
    assert rows[0] is MALFORMED
    assert len(rows) == 1501
    assert MALFORMED not in rows[1:]


def test_tsv_quotes_need_not_be_balanced(tmp_path: Path) -> None:
    lines = ["url\tcaption", 'u1\t"Starry" night', 'u2\t"never closed', 'u3\t"a\tb"', "u4\tx"]
    rows = read(write(tmp_path / "list.tsv", "\n".join(lines)))
    assert [row["caption"] for row in rows] == ['"Starry" night', '"never closed', "a\tb", "x"]


def test_a_stray_quote_of_a_tsv_does_not_reach_the_next_one(tmp_path: Path) -> None:
    captions = ["cat", '"big dog', "bird", 'table 6"', "last"]
    lines = [f"{caption}\thttp://h/{n}" for n, caption in enumerate(captions)]
    rows = read(write(tmp_path / "list.tsv", "\n".join(["caption\turl", *lines])))
    assert rows == [{"url": f"http://h/{n}", "caption": c} for n, c in enumerate(captions)]
    meant = 'caption\turl\n"two\nlines"\tu1\n"a ""word"""\tu2\n"whole\tu3"\n'
    rows = read(write(tmp_path / "quoted.tsv", meant))
    assert [row["caption"] for row in rows] == ["two\nlines", 'a "word"', '"whole']


def test_jsonl_lines_that_are_no_objects_are_malformed(tmp_path: Path) -> None:
    lines = [
        '{"url": "u1", "caption": ["a", "b"]}',
        '{"url": "u2", "caption"',
        "[1, 2]",
        "null",
        "  ",
        "[" * 100_000,
        '{"caption": "only"}',
        '{"url": "u3", "caption": "line\u2028separator", "other": {"x": 1}}',
    ]
    rows = read(write(tmp_path / "list.jsonl", "\n".join(lines)))
    assert rows == [
        {"url": "u1", "caption": ["a", "b"]},
        *[MALFORMED] * 4,
        {"url": None, "caption": "only"},
        {"url": "u3", "caption": "line\u2028separator"},
    ]


def test_parquet_lists_and_nulls_come_as_they_are(tmp_path: Path) -> None:
    captions = [["a", None, "b"], None, []]
    table = pa.table({"url": ["u1", None, "u3"], "caption": captions, "a.b": [1, 2, 3]})
    pq.write_table(table, tmp_path / "list.parquet")
    rows = read(tmp_path / "list.parquet", "url", "caption", "a.b")
    assert [row["caption"] for row in rows] == captions
    assert [row["a.b"] for row in rows] == [1, 2, 3]


def test_broken_text_is_read_whatever_column_it_is_in(tmp_path: Path) -> None:
    """pandas writes categories as dictionaries; some lists nest their captions."""
    broken = pa.array([b"\xff\xfe", b"sound"]).view(pa.string())
    table = pa.table({
        "url": ["u1", "u2"],
        "plain": broken,
        "category": broken.dictionary_encode(),
        "nested": pa.StructArray.from_arrays([broken], ["raw"]),
        "lists": pa.ListArray.from_arrays([0, 1, 2], broken.dictionary_encode()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "list.parquet")
    first, second = read(tmp_path / "list.parquet", *table.column_names)
    assert [as_text(second[name]) for name in ("plain", "category")] == ["sound"] * 2
    assert as_text(first["category"]) == as_text(first["plain"]) == "\ufffd\ufffd"
    assert as_text(first["nested"]["raw"]) == as_text(first["lists"][0]) == "\ufffd\ufffd"


LINE = st.text(st.sampled_from('ab",\t \\'), min_size=1, max_size=8).filter(str.strip)


def reference(lines: list[str], delimiter: str, width: int) -> int:
    """Return the number of rows: at each line the shortest strict record, or the line alone.

    The line alone also where a record of a tsv goes over lines and over tabs.
    """
    count = start = 0
    while start < len(lines):
        count += 1
        for end in range(start + 1, len(lines) + 1):
            text = "\n".join(lines[start:end])
            try:
                records = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
            except csv.Error:
                continue
            if len(records) == 1:
                tabs = delimiter == "\t" and any("\t" in field for field in records[0])
                lone = delimiter == "\t" and len(records[0]) != width
                start = start + 1 if end > start + 1 and (tabs or lone) else end
                break
        else:
            start += 1
    return count


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINE, max_size=8), delimiter=st.sampled_from(",\t"))
def test_quotes_never_lose_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], delimiter: str
) -> None:
    suffix = "csv" if delimiter == "," else "tsv"
    path = tmp_path_factory.getbasetemp() / f"quotes.{suffix}"
    write(path, "\n".join([f"url{delimiter}caption", *lines]) + "\n")
    assert len(read(path)) == reference(lines, delimiter, 2)


def test_a_list_without_a_header_starts_with_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text('a "quote\thttp://h/1\n"two\thttp://h/2\n"three"\thttp://h/3\nshort\n')
    layout = Layout("tsv", ("caption", "url"), quoted=False)
    check_columns(str(path), layout, ["url", "caption"])
    rows = list(read_rows(str(path), layout, ["url", "caption"]))
    assert rows == [
        {"url": "http://h/1", "caption": 'a "quote'},
        {"url": "http://h/2", "caption": '"two'},
        {"url": "http://h/3", "caption": '"three"'},
        MALFORMED,
    ]


def test_names_must_fit_a_list_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("http://h/1,one,1\n")
    with pytest.raises(ConfigError, match=r"names 2 columns, but the first line .* has 3 fields"):
        check_columns(str(path), Layout("csv", ("url", "caption")), ["url"])
    with pytest.raises(ConfigError, match="no column 'text'"):
        check_columns(str(path), Layout("csv", ("url", "caption", "n")), ["text"])
    with pytest.raises(ConfigError, match="is jsonl, which names its own columns"):
        check_columns(str(path), Layout("jsonl", ("url",)), ["url"])
