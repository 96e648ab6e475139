"""The download stage: every row accounted for, `raw/` as img2dataset wrote it, all or nothing."""

from __future__ import annotations

import hashlib
import io
import json
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

from pipeline.schema import UID_LENGTH
from pipeline.stages import download
from pipeline.stages.images import read_images
from pipeline.stages.task import is_done, tables_of
from pipeline.storage import Directory


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


def test_what_was_fetched_stays_until_something_else_was(
    six: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config that is tried while the network is down, and taken back, costs nothing."""
    six.download(image_size=30)
    table = six.table
    extra = Path(six.raw.path("00000-r1.tar"))
    extra.write_bytes(b"of a retry")
    images = read_images(six.run, table.filter(pa.compute.is_null(table["reason"])))

    def unreachable(*arguments: object) -> None:
        raise RuntimeError("the network may be down")

    with monkeypatch.context() as patch:
        patch.setattr(download, "_check_reached", unreachable)
        with pytest.raises(RuntimeError, match="may be down"):
            six.download(image_size=40)
    assert is_done(six.run, "download", "00000", "mark") and six.table.equals(table)
    assert read_images(six.run, table.filter(pa.compute.is_null(table["reason"]))) == images
    assert extra.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Directory, "commit", unreachable)
        with pytest.raises(RuntimeError, match="may be down"):
            six.download(image_size=40)
    # Files are being replaced: a table of the earlier ones would read them at wrong places.
    assert not is_done(six.run, "download", "00000", "mark")
    six.download(image_size=40)
    assert not extra.exists() and max(w or 0 for w in six.table["width"].to_pylist()) > 45


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
        asking = {"respect_robots_txt": True, "wholesale_rows": 5}
        with pytest.raises(RuntimeError, match="wholesale_rows=null"):
            part.download(**asking)  # robots.txt could not be reached either
        one_answer = fetching([*part.source.given, {"url": web.base + "/none"}])
        one_answer.download(wholesale_rows=5)
        assert one_answer.reasons == [*["connection"] * 5, "not_found"]


def test_the_hash_that_a_list_gives_is_held_to(
    fetching: Callable[..., Any], web: Any, image: Callable[..., bytes]
) -> None:
    """What another image's row brought is not kept either: no takedown would find it."""
    data, other = image(".jpg", 1), image(".jpg", 2)
    url = web.add("/a.jpg", data)
    right = hashlib.sha256(data).hexdigest()
    rows = [{"url": url, "expected_sha256": h} for h in (right.upper(), None)]
    rows.append({"url": web.add("/b.jpg", other), "expected_sha256": right})
    part = fetching(rows)
    part.download()
    assert part.reasons == [None, None, "wrong_content"]
    assert "expected_sha256" not in part.table.column_names
    kept = read_images(part.run, part.table.slice(0, 2))
    (tar,) = (name for name in part.raw.names() if name.endswith(".tar"))
    packed = part.raw.read_bytes(tar)
    assert packed.count(kept[0]) == 2
    with tarfile.open(fileobj=io.BytesIO(packed)) as members:
        images = [members.extractfile(m).read() for m in members if m.name.endswith("jpg")]  # type: ignore[union-attr]
    assert [any(content) for content in images].count(False) == 1 and len(images) == 3


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
