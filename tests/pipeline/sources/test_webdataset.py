"""Existing tars as a source: rows from img2dataset's sidecars, or from the members."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.part import cut
from pipeline.settings import ConfigError, build
from pipeline.sources.row import MARK, meta_types, to_table
from pipeline.sources.webdataset import WebdatasetConfig, WebdatasetSource
from pipeline.storage import Directory

SHA = "ab" * 32
Image = Callable[..., bytes]


def source(paths: Any, **options: Any) -> WebdatasetSource:
    paths = [str(p) for p in paths] if isinstance(paths, list) else str(paths)
    return WebdatasetSource(build(WebdatasetConfig, {"paths": paths, **options}))


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def sidecar(path: Path, entries: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(entries), path.with_suffix(".parquet"))


def test_rows_of_members(tmp_path: Path, image: Image) -> None:
    known = {"url": "http://h/b", "caption": "from json", "sha256": SHA, "original_width": 640}
    write(
        tmp_path / "00000.tar",
        [
            {"__key__": "a", "jpg": image(), "txt": "from txt"},
            {"__key__": "b", "webp": image(".webp"), "txt": "from json", "json": known | {"n": 1}},
            {"__key__": "c", "txt": "no image"},
            {"__key__": "d", "jpg": image(), "json": b"{broken"},
            {"__key__": "e", "jpg": image(), "json": b"[" * 5000},
            {"__key__": "f", "jpg": image(), "txt": b"x" * ((1 << 20) + 1)},
            {"__key__": "g", "jpg": image(width=300, height=300)},
            {"__key__": "h", "pyd": b"a pickle, never loaded", "png": image(".png")},
        ],
    )
    limit = len(image(width=300, height=300)) - 1
    rows = list(source(tmp_path / "*.tar", keep_columns=["n"], max_member_bytes=limit).rows())
    columns = ("url", "captions", "row_error", "n")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("00000.tar/a", ["from txt"], None, None),
        ("http://h/b", ["from json"], None, 1),
        ("00000.tar/c", [], "missing_image", None),
        ("00000.tar/d", [], "malformed_row", None),
        ("00000.tar/e", [], "malformed_row", None),
        ("00000.tar/f", [], "malformed_row", None),
        ("00000.tar/g", [], "oversized_member", None),
        ("00000.tar/h", [], None, None),
    ]
    assert rows[1]["stored"]["sha256"] == SHA
    assert rows[1]["stored"]["original_width"] == 640
    data = (tmp_path / "00000.tar").read_bytes()
    places = [rows[n]["stored"] for n in (0, 1, 7)]
    assert [data[p["offset"] : p["offset"] + p["size"]] for p in places] == [
        image(),
        image(".webp"),
        image(".png"),
    ]


def test_a_column_names_each_images_split(tmp_path: Path, image: Image) -> None:
    splits = {"a": "train", "b": "test", "c": "../up", "d": None}
    write(
        tmp_path / "00000.tar",
        [{"__key__": key, "jpg": image(), "json": {"part": name}} for key, name in splits.items()],
    )
    entries = [{"key": k, "status": "success", "part": v, "url": k} for k, v in splits.items()]
    expected = [("train", None), ("test", None), ("train", "bad_split"), ("train", None)]
    for listed in (False, True):
        if listed:
            sidecar(tmp_path / "00000.tar", entries)
        found = source(tmp_path / "*.tar", split_column="part", caption_columns=["url"]).rows()
        assert [(row["split"], row["row_error"]) for row in found] == expected
    with pytest.raises(ConfigError, match="no column 'prt'; did you mean 'part'"):
        source(tmp_path / "*.tar", split_column="prt", caption_columns=["url"]).check()


@pytest.mark.parametrize(
    "config", [{"split_column": "prt"}, {"keep_columns": ["prt"]}, {"caption_columns": ["prt"]}]
)
def test_a_key_that_no_json_member_has_is_refused(
    tmp_path: Path, image: Image, config: dict[str, Any]
) -> None:
    write(tmp_path / "0.tar", [{"__key__": "a", "jpg": image(), "json": {"part": "x"}}])
    with pytest.raises(ConfigError, match="has 'prt'; did you mean 'part'"):
        source(tmp_path / "0.tar", **config).check()
    # Captions may be in .txt members, and URLs nowhere.
    source(tmp_path / "0.tar", caption_columns=["caption"], url_column="url").check()


def test_a_tar_written_anew_is_another_part(tmp_path: Path, image: Image) -> None:
    """Its rows may be the same, and their images lie elsewhere in it."""
    samples = [{"__key__": key, "jpg": image(seed=n)} for n, key in enumerate("ab")]
    sidecar(tmp_path / "0.tar", [{"key": k, "status": "success", "url": k} for k in "ab"])
    found = []
    for order in (samples, samples[::-1]):
        write(tmp_path / "0.tar", order)
        os.utime(tmp_path / "0.tar", (0, len(found)))
        reader = source(tmp_path / "0.tar", caption_columns=["url"])
        found += cut(Directory(tmp_path / "run"), reader, 10)
    assert found[0].fingerprint != found[1].fingerprint


def test_rows_of_a_sidecar_keep_the_failed_ones_without_opening_the_tar(tmp_path: Path) -> None:
    tar = tmp_path / "00000.tar"
    tar.write_bytes(b"never read")
    base = {"caption": "c", "original_width": 9, "original_height": 8, "sha256": SHA}
    sidecar(
        tar,
        [
            {"key": "1", "status": "success", "url": "http://h/1", "error_message": None, **base},
            {
                "key": "0",
                "status": "failed_to_download",
                "url": "http://h/0",
                "error_message": "HTTP Error 404: Not Found",
                **base,
                "sha256": None,
            },
            {"key": "1", "status": "success", "url": "http://h/2", "error_message": None, **base},
            {"key": "3", "status": "failed_to_resize", "url": None, "error_message": None, **base},
        ],
    )
    rows = list(source(tar).rows())
    assert [(r["url"], r["row_error"], r["stored"]["error"]) for r in rows] == [
        ("http://h/1", None, None),
        ("http://h/0", None, "HTTP Error 404: Not Found"),
        ("http://h/2", "duplicate_key", None),
        ("00000.tar/3", None, "failed_to_resize"),
    ]
    assert rows[0]["stored"] == {
        "tar": f"file://{tar}",
        "key": "1",
        "offset": None,
        "size": None,
        "error": None,
        "sha256": SHA,
        "original_width": 9,
        "original_height": 8,
    }
    table = to_table(rows, meta_types(rows))
    assert table["stored"].to_pylist() == [row["stored"] for row in rows]


def test_a_parquet_of_another_kind_is_no_sidecar(tmp_path: Path, image: Image) -> None:
    tar = write(tmp_path / "x.tar", [{"__key__": "a", "jpg": image()}])
    sidecar(tar, [{"uid": "1", "text": "metadata of another tool"}])
    assert [row["url"] for row in source(tar).rows()] == ["x.tar/a"]


def test_a_damaged_sidecar_is_named(tmp_path: Path, image: Image) -> None:
    tar = write(tmp_path / "x.tar", [{"__key__": "a", "jpg": image()}])
    tar.with_suffix(".parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ConfigError, match=r"x\.parquet is damaged .*delete it"):
        source(tar).check()


def test_brace_lists_globs_and_several_paths_keep_their_order(tmp_path: Path, image: Image) -> None:
    for n in range(12):
        write(tmp_path / f"{n:02d}.tar", [{"__key__": f"k{n}", "jpg": image()}])
    braces = [r["stored"]["key"] for r in source(tmp_path / "{08..11}.tar").rows()]
    assert braces == ["k8", "k9", "k10", "k11"]
    several = source([tmp_path / "03.tar", tmp_path / "1*.tar"]).rows()
    assert [r["stored"]["key"] for r in several] == ["k3", "k10", "k11"]
    everything = [r["stored"]["key"] for r in source(tmp_path / "*.tar").rows()]
    assert everything == [f"k{n}" for n in range(12)]  # more tars than are read at once


def test_check_refuses_what_cannot_be_used(tmp_path: Path, image: Image) -> None:
    with pytest.raises(ConfigError, match="names no file"):
        source(tmp_path / "{00..03}.tar").check()
    with pytest.raises(ConfigError, match="pipe:cat names no file"):
        source("pipe:cat").check()
    with pytest.raises(ConfigError, match=r"source\.paths"):
        source("no-such-protocol://x/0.tar").check()
    packed = tmp_path / "x.tar.gz"
    with tarfile.open(packed, "w:gz"):
        pass
    with pytest.raises(ConfigError, match=r"no \.tar; images are read in place"):
        source(packed).check()
    tar = write(tmp_path / "y.tar", [{"__key__": "a", "jpg": image()}])
    sidecar(tar, [{"key": "a", "status": "success", "url": "u"}])
    with pytest.raises(ConfigError, match="no column 'caption'"):
        source(tar).check()
    source(tar, caption_columns=[]).check()
    with pytest.raises(ConfigError, match="'stored' is a name of our own"):
        source(tar, keep_columns=["stored"])


def test_the_fingerprint_follows_tars_sidecars_and_config(tmp_path: Path, image: Image) -> None:
    tar = write(tmp_path / "x.tar", [{"__key__": "a", "jpg": image()}])
    marks = [source(tar).fingerprint(), source(tar, split="test").fingerprint()]
    sidecar(tar, [{"key": "a", "status": "success", "url": "u", "caption": "c"}])
    marks.append(source(tar).fingerprint())
    write(tar, [{"__key__": "a", "jpg": image(seed=1)}, {"__key__": "b", "jpg": image()}])
    marks.append(source(tar).fingerprint())
    assert len(set(marks)) == 4
    assert source(tar).fingerprint() == marks[-1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_remote_tars_give_the_rows_of_local_ones(tmp_path: Path, image: Image, served: str) -> None:
    for n in range(3):
        samples = [{"__key__": f"{n}-{m}", "jpg": image(seed=m), "txt": f"{m}"} for m in range(4)]
        write(tmp_path / f"{n}.tar", samples)
    local = list(source(tmp_path / "{0..2}.tar").rows())
    remote = list(source(f"{served}/{{0..2}}.tar").rows())
    for row in [*local, *remote]:
        row["stored"].pop("tar")
        assert row.pop(MARK)
    assert remote == local
    assert len(remote) == 12


def test_pandas_and_json_nonsense_in_numbers(tmp_path: Path, image: Image) -> None:
    entry = {"original_width": 640.0, "original_height": "tall", "sha256": "short", "url": 7}
    tar = write(tmp_path / "x.tar", [{"__key__": "a", "jpg": image(), "json": json.dumps(entry)}])
    (row,) = source(tar).rows()
    stored = row["stored"]
    assert (stored["original_width"], stored["original_height"]) == (640, None)
    assert (stored["sha256"], row["url"]) == (None, "7")
