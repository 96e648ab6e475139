"""Adopting tars: img2dataset's own shards, and tars with everything wrong that can be wrong."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from img2dataset.downloader import Downloader
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter

from pipeline.part import cut
from pipeline.schema import uid_of
from pipeline.settings import build
from pipeline.sources.webdataset import WebdatasetConfig, WebdatasetSource
from pipeline.stages.adopt import adopt
from pipeline.stages.download import DownloadConfig
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory
from tests.pipeline.stages.test_image_bombs import with_scans

Image = Callable[..., bytes]


def adopted(folder: Path, rows_per_part: int = 10_000, **options: Any) -> pa.Table:
    """Cut the tars in `folder`, adopt every part and return the tables joined."""
    run = Directory(folder / "run")
    source = WebdatasetSource(build(WebdatasetConfig, {"paths": f"{folder}/*.tar", **options}))
    source.check()
    parts = cut(run, source, rows_per_part)
    for part in parts:
        report = adopt(Task(run, "download", "mark"), part, source, DownloadConfig())
        assert report.counts["rows"] == part.rows
    tables = [tables_of(run, "download").read_table(f"{part.name}.parquet") for part in parts]
    return pa.concat_tables(tables)


def images_of(table: pa.Table) -> list[bytes | None]:
    """Return the bytes at each row's recorded place."""
    found: list[bytes | None] = []
    for row in table.to_pylist():
        if row["reason"] is not None:
            assert row["uid"] is row["image_offset"] is row["image_size"] is row["raw"] is None
            found.append(None)
            continue
        data = Path(row["raw"].removeprefix("file://")).read_bytes()
        found.append(data[row["image_offset"] : row["image_offset"] + row["image_size"]])
    return found


def make_with_img2dataset(folder: Path, urls: list[str], shard: int, **options: Any) -> None:
    """Have img2dataset itself write a shard as its command does, 4 fetches at a time."""
    rows = {"url": urls, "caption": [f"caption {url[-6:]}" for url in urls]}
    rows |= {"number": list(range(len(urls)))}
    listed = folder / f"{shard}.arrow"
    table = pa.table(rows)
    with pa.OSFile(str(listed), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(image_size=16, resize_mode="keep_ratio", resize_only_if_bigger=True),
        thread_count=4,
        save_caption=True,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url", "caption", "number"],
        timeout=10,
        number_sample_per_shard=100,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=["noai"],
        **options,
    )
    assert downloader((shard, str(listed)))[0]


@pytest.fixture
def shards(tmp_path: Path, web: Any, image: Image) -> tuple[Path, dict[str, bytes]]:
    """Two shards by img2dataset, and the original bytes of each URL that it could fetch."""
    originals = {web.add(f"/{n:02d}.jpg", image(seed=n)): image(seed=n) for n in range(9)}
    bad = [
        web.base + "/absent",
        web.add("/text.jpg", b"no image"),
        web.add("/out.jpg", image(), X_Robots_Tag="noai"),
        web.base + "/reset",
    ]
    urls = [*originals, *bad]
    make_with_img2dataset(tmp_path, urls[::2], 0)
    make_with_img2dataset(tmp_path, urls[1::2], 1)
    return tmp_path, originals


@pytest.mark.parametrize("sidecars", [True, False])
@pytest.mark.parametrize("rows_per_part", [100, 3])
def test_img2dataset_shards_are_adopted(
    shards: tuple[Path, dict[str, bytes]], sidecars: bool, rows_per_part: int
) -> None:
    folder, originals = shards
    if not sidecars:
        for path in folder.glob("*.parquet"):
            path.unlink()
    table = adopted(folder, rows_per_part, keep_columns=["number"])
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(len(rows)))
    kept = {row["url"]: row for row in rows if row["reason"] is None}
    assert set(kept) == set(originals)
    for url, data in originals.items():
        row = kept[url]
        assert row["uid"] == hashlib.sha256(data).hexdigest()[:32]
        assert (row["width"], row["height"]) == (21, 16)
        assert (row["original_width"], row["original_height"]) == (40, 30)
        assert row["captions"] == [f"caption {url[-6:]}"]
        assert isinstance(row["meta.number"], int)
    for data in filter(None, images_of(table)):
        assert data.startswith(b"\xff\xd8\xff")
        assert data.endswith(b"\xff\xd9")
    failed = {row["url"].rsplit("/", 1)[1]: row["reason"] for row in rows if row["reason"]}
    assert failed == (
        {
            "absent": "not_found",
            "text.jpg": "not_an_image",
            "out.jpg": "opted_out",
            "reset": "reset",
        }
        if sidecars
        else {}
    )
    assert "stored" not in table.column_names


def test_the_table_is_that_of_download(
    tmp_path: Path, image: Image, web: Any, fetching: Callable[..., Any]
) -> None:
    """The stages behind cannot tell which of the two obtained their images."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "0", "jpg": image(), "txt": "zero", "json": {"n": 1}})
    table = adopted(tmp_path, keep_columns=["n"])
    fetched = fetching([{"url": web.add("/0.jpg", image()), "captions": ["zero"], "n": 1}])
    fetched.download()
    assert table.schema.remove_metadata() == fetched.table.schema.remove_metadata()
    assert table["uid"] == fetched.table["uid"]


def test_a_listed_image_that_the_tar_lacks_is_counted(
    shards: tuple[Path, dict[str, bytes]], image: Image
) -> None:
    """The tar cut short after img2dataset finished: the sidecar still lists every row."""
    folder, originals = shards
    before = adopted(folder)
    tar = folder / "00000.tar"
    places = sorted(
        row["image_offset"] + row["image_size"]
        for row in before.to_pylist()
        if row["raw"] == f"file://{tar}"
    )
    tar.write_bytes(tar.read_bytes()[: places[-2] - 10])
    after = adopted(folder / ".", rows_per_part=50)
    reasons = [r for r in after["reason"].to_pylist() if r in ("damaged_tar", "missing_image")]
    assert sorted(reasons) == ["damaged_tar", "missing_image"]
    assert after.num_rows == before.num_rows == len(originals) + 4
    assert after["reason"].null_count == before["reason"].null_count - 2


def test_webdataset_tars_with_every_fault(tmp_path: Path, image: Image) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "dir/0", "jpg": image(), "txt": "zero", "cls": 3})
        writer.write({"__key__": "1", "png": image(".png"), "pyd": {"danger": 1}})
        writer.write({"__key__": "2", "webp": image(".webp"), "txt": "two"})
        writer.write({"__key__": "3", "jpeg": image(seed=3)})
        writer.write({"__key__": "4", "jpg": b"no image"})
        writer.write({"__key__": "5", "jpg": b""})
        writer.write({"__key__": "6", "txt": "alone"})
        writer.write({"__key__": "1", "jpg": image(seed=1)})
        writer.write({"__key__": "../7", "jpg": image()})
        writer.write({"__key__": "8", "jpg": image(width=400, height=400)})
        writer.write({"__key__": "9", "jpg": image(seed=9)[:200]})
    table = adopted(tmp_path, max_member_bytes=20_000)
    assert list(zip(table["url"].to_pylist(), table["reason"].to_pylist(), strict=True)) == [
        ("a.tar/dir/0", None),
        ("a.tar/1", None),
        ("a.tar/2", None),
        ("a.tar/3", None),
        ("a.tar/4", "not_an_image"),
        ("a.tar/5", "not_an_image"),
        ("a.tar/6", "missing_image"),
        ("a.tar/1", "duplicate_key"),
        ("a.tar/../7", "bad_name"),
        ("a.tar/8", "oversized_member"),
        ("a.tar/9", "truncated"),
    ]
    assert images_of(table)[:4] == [image(), image(".png"), image(".webp"), image(seed=3)]
    assert table["uid"].to_pylist()[:4] == [uid_of(data) for data in images_of(table)[:4] if data]
    assert set(table["failure"].to_pylist()[4:]) == {"permanent"}
    assert table["captions"].to_pylist()[:3] == [["zero"], [], ["two"]]


def test_an_oversized_member_of_a_listed_tar_is_never_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.size = 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\xff\xd8\xff" * 1000)
    entries = [{"key": "1", "status": "success", "url": "http://h/1", "caption": "c"}]
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "a.parquet")
    assert adopted(tmp_path)["reason"].to_pylist() == ["damaged_tar"]


def test_damage_in_the_middle_costs_what_it_hits(tmp_path: Path, image: Image) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        starts = []
        for n in range(4):
            starts.append(buffer.tell())
            info = tarfile.TarInfo(f"{n}.jpg")
            info.size = len(image(seed=n))
            tar.addfile(info, io.BytesIO(image(seed=n)))
    data = bytearray(buffer.getvalue())
    data[starts[1] + 124 : starts[1] + 136] = b"not a size!!"
    (tmp_path / "a.tar").write_bytes(bytes(data))
    (tmp_path / "b.tar").write_bytes(b"<html>an error page</html>")
    (tmp_path / "c.tar").write_bytes(b"")
    table = adopted(tmp_path, rows_per_part=2)
    assert table["reason"].to_pylist() == [None, "damaged_tar", None, None, *["damaged_tar"] * 2]
    assert images_of(table)[2] == image(seed=2)


def test_a_tar_that_is_gone_is_named(tmp_path: Path, image: Image) -> None:
    tar = tmp_path / "a.tar"
    with webdataset.TarWriter(str(tar)) as writer:
        writer.write({"__key__": "0", "jpg": image()})
    run = Directory(tmp_path / "run")
    source = WebdatasetSource(build(WebdatasetConfig, {"paths": str(tar)}))
    (part,) = cut(run, source, 10)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"source\.paths: the tar .*a\.tar is gone"):
        adopt(Task(run, "download", "mark"), part, source, DownloadConfig())


def test_a_tar_that_shrank_since_the_cut_is_counted(tmp_path: Path, image: Image) -> None:
    tar = tmp_path / "a.tar"
    with webdataset.TarWriter(str(tar)) as writer:
        for n in range(3):
            writer.write({"__key__": str(n), "jpg": image(seed=n)})
    run = Directory(tmp_path / "run")
    source = WebdatasetSource(build(WebdatasetConfig, {"paths": str(tar)}))
    (part,) = cut(run, source, 10)
    with tar.open("r+b") as file:
        file.truncate(part.table(run)["stored"].to_pylist()[1]["offset"] + 5)
    adopt(Task(run, "download", "mark"), part, source, DownloadConfig())
    table = tables_of(run, "download").read_table("00000.parquet")
    assert table["reason"].to_pylist() == [None, "damaged_tar", "damaged_tar"]


def test_a_jpeg_that_takes_ages_to_decode_is_counted(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "tars" / "00000.tar")) as writer:
        writer.write({"__key__": "bomb", "jpg": with_scans(5000, (64, 48)), "txt": "a bomb"})
        writer.write({"__key__": "fine", "jpg": with_scans(50, (64, 48)), "txt": "a picture"})
    assert adopted(tmp_path / "tars")["reason"].to_pylist() == ["too_many_pixels", None]
