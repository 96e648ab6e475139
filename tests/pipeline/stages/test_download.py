"""The download stage: every row accounted for, `raw/` as img2dataset wrote it, all or nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from img2dataset.downloader import Downloader
from PIL import Image

from pipeline.fetch.blocklist import Blocklist
from pipeline.schema import UID_LENGTH
from pipeline.stages.images import read_images
from pipeline.stages.task import is_done, tables_of
from pipeline.storage import Directory


@pytest.fixture
def six(web: Any, fetching: Callable[..., Any], image: Callable[..., bytes]) -> Any:
    """A part of six rows: three images (two of them the same bytes), three failures."""
    web.add("/big.jpg", image(".jpg", 1, 90, 60))
    web.add("/small.png", image(".png", 2, 20, 20))
    web.add("/copy.png", image(".png", 2, 20, 20))
    return fetching(
        [
            {"url": web.base + "/big.jpg", "captions": ["a", "b"], "colour": "red"},
            {"url": "ftp://no", "row_error": "bad_url"},
            {"url": web.base + "/small.png", "split": "test"},
            {"url": web.base + "/none.jpg", "captions": ["lost"]},
            {"url": None, "row_error": "missing_url"},
            {"url": web.base + "/copy.png"},
        ]
    )


def test_every_row_is_there_with_its_fate(six: Any, image: Callable[..., bytes]) -> None:
    report = six.download(image_size=30)
    table = six.table
    reasons = [None, "bad_url", None, "not_found", "missing_url", None]
    assert table["row"].to_pylist() == list(range(6))
    assert table["reason"].to_pylist() == reasons
    assert table["meta.colour"].to_pylist() == ["red", *[None] * 5]
    assert table["captions"].to_pylist() == [["a", "b"], [], [], ["lost"], [], []]
    assert table["split"].to_pylist()[2] == "test"
    sources = [image(".jpg", 1, 90, 60), image(".png", 2, 20, 20), image(".png", 2, 20, 20)]
    uids = [hashlib.sha256(data).hexdigest()[:UID_LENGTH] for data in sources]
    assert [uid for uid in table["uid"].to_pylist() if uid] == uids
    assert table["width"].to_pylist() == [45, None, 20, None, None, 20]
    assert table["original_height"].to_pylist() == [60, None, 20, None, None, 20]
    assert report.counts == {"rows": 6, "failed": 3}
    assert report.bytes == sum(size or 0 for size in table["image_size"].to_pylist())
    assert is_done(six.run, "download", "00000", "mark")


def test_raw_is_what_img2dataset_wrote(six: Any) -> None:
    six.download(image_size=30)
    assert six.raw.names() == ["00000.parquet", "00000.tar", "00000_stats.json"]
    stats = six.raw.read_json("00000_stats.json")
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (4, 3, 1)
    records = pq.read_table(six.raw.path("00000.parquet"))
    assert sorted(records["place"].to_pylist()) == [0, 2, 3, 5]
    with tarfile.open(six.raw.path("00000.tar")) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert sum(name.endswith(".jpg") for name in members) == 3
    table = six.table
    fetched = table.filter(pa.compute.is_null(table["reason"]))
    images = read_images(six.run, fetched)
    assert all(data in members.values() for data in images)
    for data, width in zip(images, fetched["width"].to_pylist(), strict=True):
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1] == width
    metas = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert {meta["status"] for meta in metas} == {"success"}


@pytest.mark.parametrize(("kind", "quality"), [("jpg", 90), ("png", 3), ("webp", 80)])
def test_images_are_stored_in_the_format_asked_for(six: Any, kind: str, quality: int) -> None:
    six.download(format=kind, quality=quality)
    magic = {"jpg": b"\xff\xd8", "png": b"\x89PNG", "webp": b"RIFF"}[kind]
    table = six.table
    fetched = table.filter(pa.compute.is_null(table["reason"]))
    images = read_images(six.run, fetched)
    assert len(images) == 3
    assert all(data.startswith(magic) for data in images)


def test_the_user_agent_names_us_unless_told_not_to(six: Any, web: Any) -> None:
    six.download()
    end = " (compatible; tcjepa; +https://github.com/rom1504/img2dataset)"  # as img2dataset does
    assert all(agent.endswith(end) for _, agent in web.requests)
    web.requests.clear()
    six.download(contact_url="https://lab.example/crawl")
    assert all("; tcjepa; +https://lab.example/crawl)" in agent for _, agent in web.requests)
    web.requests.clear()
    six.download(user_agent_token=None)
    assert web.requests
    assert not any("tcjepa" in agent for _, agent in web.requests)


def test_only_what_may_pass_is_tried_again(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.base + "/none.jpg"}, {"url": web.add("/busy.jpg", status=503)}])
    part.download(retries=2, backoff_s=0.01)
    paths = [path for path, _ in web.requests]
    assert paths.count("/none.jpg") == 1
    assert paths.count("/busy.jpg") == 3
    assert part.reasons == ["not_found", "http_5xx"]


def test_a_part_without_a_fetchable_row_is_done_without_raw(fetching: Callable[..., Any]) -> None:
    part = fetching([{"url": None, "row_error": "missing_url"}] * 3)
    assert part.download().counts == {"rows": 3, "failed": 3}
    assert part.table["reason"].to_pylist() == ["missing_url"] * 3
    assert part.table["uid"].null_count == 3
    assert part.raw.names() == []
    assert is_done(part.run, "download", "00000", "mark")


def test_a_part_whose_fetches_all_fail_is_whole(web: Any, fetching: Callable[..., Any]) -> None:
    part = fetching([{"url": f"{web.base}/none{n}"} for n in range(3)])
    part.download()
    assert part.table["reason"].to_pylist() == ["not_found"] * 3
    assert part.raw.exists("00000_stats.json")


def _looks_done(part: Any) -> bool:
    return part.raw.exists("00000_stats.json") or is_done(part.run, "download", "00000", "mark")


def _litter(part: Any) -> list[Path]:
    return [path for path in Path(part.raw.path()).iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.parametrize("earlier", [False, True])
def test_when_img2dataset_gives_up_nothing_looks_done(
    six: Any, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """It swallows its own exceptions and answers False, as when the disk is full."""
    if earlier:
        six.download()
        tables_of(six.run, "download").remove("00000.parquet")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("img2dataset.downloader.write_stats", broken)
    with pytest.raises(RuntimeError, match="img2dataset failed on part 00000"):
        six.download()
    assert not _looks_done(six)
    assert _litter(six) == []
    monkeypatch.undo()
    six.download()
    assert _looks_done(six)


def test_a_commit_that_fails_leaves_no_mark(six: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Directory.commit

    def failing(self: Directory, temporary: Path, name: str) -> None:
        if name.endswith("_stats.json"):
            raise OSError("connection to the store lost")
        commit(self, temporary, name)

    monkeypatch.setattr(Directory, "commit", failing)
    with pytest.raises(OSError, match="lost"):
        six.download()
    assert not _looks_done(six)
    assert _litter(six) == []


def test_a_sample_that_img2dataset_loses_is_counted(
    six: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It skips a sample whose processing raises, without a record."""
    monkeypatch.setattr(
        "pipeline.stages.integrity.CheckedResizer.__call__", lambda *_: (None, "short tuple")
    )
    six.download()
    reasons = six.table["reason"].to_pylist()
    assert reasons == ["other", "bad_url", "other", "not_found", "missing_url", "other"]


def test_the_downloader_is_called_as_its_signature_says() -> None:
    """`Downloader` is no public interface of img2dataset: a new version may change it."""
    import inspect

    parameters = inspect.signature(Downloader).parameters
    assert {"compute_hash", "disallowed_header_directives", "oom_shard_count"} <= set(parameters)


@pytest.fixture
def mixed(web: Any, fetching: Callable[..., Any], image: Callable[..., bytes]) -> Any:
    """A part of an image, a permanent failure, two that pass, and a row that is not fetched."""
    web.add("/good.jpg", image(".jpg", 1))
    return fetching(
        [
            {"url": web.base + "/good.jpg", "captions": ["a"]},
            {"url": web.base + "/none.jpg", "captions": ["b"]},
            {"url": web.add("/soon.jpg", status=503), "captions": ["c"]},
            {"url": web.add("/later.jpg", status=429), "captions": ["d"]},
            {"url": None, "row_error": "missing_url", "captions": ["e"]},
        ]
    )


def test_a_retry_fetches_what_was_transient_and_nothing_else(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    first = mixed.table
    assert mixed.reasons == [None, "not_found", "http_5xx", "rate_limited", "missing_url"]
    tar = mixed.raw.read_bytes("00000.tar")
    web.requests.clear()
    web.add("/none.jpg", image(".jpg", 3))  # it is there now, but it was a permanent failure
    web.add("/soon.jpg", image(".jpg", 2))
    report = mixed.download(generation=1, mark="again")
    assert sorted(path for path, _ in web.requests) == ["/later.jpg", "/soon.jpg"]
    assert mixed.reasons == [None, "not_found", None, "rate_limited", "missing_url"]
    assert report.counts == {"rows": 5, "failed": 3}
    assert is_done(mixed.run, "download", "00000", "again")
    assert mixed.raw.read_bytes("00000.tar") == tar
    assert mixed.raw.exists("00000-r1_stats.json")
    table = mixed.table
    assert table.schema == first.schema
    assert table["captions"].to_pylist() == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert table["row"].to_pylist() == list(range(5))
    assert table["raw"].to_pylist() == ["00000.tar", None, "00000-r1.tar", None, None]
    fetched = table.filter(pa.compute.is_null(table["reason"]))
    assert read_images(mixed.run, fetched) == [image(".jpg", 1), image(".jpg", 2)]


def test_a_second_retry_adds_to_the_first(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    web.add("/soon.jpg", image(".jpg", 2))
    mixed.download(generation=1)
    web.requests.clear()
    web.add("/later.jpg", image(".jpg", 3))
    mixed.download(generation=2)
    assert [path for path, _ in web.requests] == ["/later.jpg"]
    assert mixed.table["raw"].to_pylist()[2:4] == ["00000-r1.tar", "00000-r2.tar"]
    web.requests.clear()
    mixed.download(generation=3)  # nothing transient is left
    assert web.requests == []
    assert mixed.reasons == [None, "not_found", None, None, "missing_url"]


def test_a_retry_under_other_settings_fetches_all_anew(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    web.add("/soon.jpg", image(".jpg", 2))
    mixed.download(generation=1)
    web.requests.clear()
    mixed.download(generation=1, image_size=16)
    assert len(web.requests) == 4
    heights = [height for height in mixed.table["height"].to_pylist() if height]
    assert heights == [16, 16]
    assert mixed.raw.names() == ["00000.parquet", "00000.tar", "00000_stats.json"]


def test_a_part_that_reached_nothing_is_not_done(fetching: Callable[..., Any], web: Any) -> None:
    """The network was down: counting its rows as failures would lose them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening: refused
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        part = fetching([{"url": closed + str(n)} for n in range(5)])
        with pytest.raises(RuntimeError, match="wholesale_rows=null"):
            part.download(wholesale_rows=5)
        assert not _looks_done(part)
        assert part.raw.names() == []
        part.download(wholesale_rows=6)
        assert part.reasons == ["connection"] * 5
        part.download(wholesale_rows=None)
        assert part.reasons == ["connection"] * 5
        one_answer = fetching([*part.source.given, {"url": web.base + "/none"}])
        one_answer.download(wholesale_rows=5)
        assert one_answer.reasons == [*["connection"] * 5, "not_found"]


def test_the_hash_that_a_list_gives_is_held_to(
    fetching: Callable[..., Any], web: Any, image: Callable[..., bytes]
) -> None:
    data = image(".jpg", 1)
    url = web.add("/a.jpg", data)
    right = hashlib.sha256(data).hexdigest()
    rows = [{"url": url, "expected_sha256": h} for h in (right.upper(), "0" * 64, None)]
    part = fetching(rows)
    part.download()
    assert part.reasons == [None, "wrong_content", None]
    assert "expected_sha256" not in part.table.column_names


def test_animations_are_noted(fetching: Callable[..., Any], web: Any) -> None:
    """What is stored is their first frame: only the file as fetched says that there were more."""
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    urls = []
    for kind in ("GIF", "WEBP", "PNG"):
        for count in (1, 2):
            buffer = io.BytesIO()
            frames[0].save(buffer, kind, save_all=count > 1, append_images=frames[1:count])
            urls.append(web.add(f"/{count}.{kind}", buffer.getvalue()))
    part = fetching([*({"url": url} for url in urls), {"url": web.base + "/none"}])
    part.download()
    assert part.table["animated"].to_pylist() == [False, True] * 3 + [None]
    stored = read_images(part.run, part.table.slice(0, 6))
    assert all(cv2.imdecode(np.frombuffer(d, np.uint8), 1).shape == (30, 40, 3) for d in stored)


def test_takedowns_are_not_fetched(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.add("/a.jpg", b"x")}, {"url": web.add("/b.jpg", b"x")}])
    part.download(blocklist=Blocklist(urls=frozenset({web.base + "/a.jpg"})))
    assert part.reasons == ["blocked_url", "not_an_image"]
    part.download(blocklist=Blocklist(hosts=frozenset({"127.0.0.1"})))
    assert part.reasons == ["blocked_host"] * 2
    assert [path for path, _ in web.requests] == ["/b.jpg"]


def test_loopback_is_refused_unless_it_is_listed(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.add("/a.jpg", b"x")}])
    part.download(allow_private_hosts=[f"127.0.0.1:{web.port + 1}"])
    assert part.reasons == ["private_address"]
    assert part.table["failure"].to_pylist() == ["policy"]
    assert web.requests == []
    part.download(allow_private_hosts=[f"127.0.0.1:{web.port}"])
    assert part.reasons == ["not_an_image"]


def test_files_are_read_under_the_sources_folder_only(
    fetching: Callable[..., Any], tmp_path: Path, image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(image(".jpg"))
    (tmp_path / "secret.jpg").write_bytes(image(".jpg"))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    names = ["photos/a.jpg", "secret.jpg", "photos/link.jpg", "photos/../secret.jpg"]
    names += ["photos/%2e%2e/secret.jpg", "photos/pipe.jpg", "photos/none.jpg", "photos"]
    urls = [f"file://{tmp_path}/{name}" for name in names] + ["file://elsewhere/a.jpg"]
    part = fetching([{"url": url} for url in urls], local_root=str(folder))
    part.download()
    outside = "outside_folder"
    expected = [None, outside, outside, outside, outside, "not_an_image", "missing_file"]
    assert part.reasons == [*expected, "not_an_image", "bad_url"]
    without = fetching([{"url": urls[0]}])
    without.download()
    assert without.reasons == ["bad_scheme"]
