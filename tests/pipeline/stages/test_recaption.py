"""The recaption stage on real captioners: sentences from truth, and a tiny BLIP."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.captioners import loaded
from pipeline.filters.blocklist import BlockConfig
from pipeline.filters.config import FilterConfig, ImageFilterConfig
from pipeline.part import cut
from pipeline.settings import ConfigError, build, effective, to_yaml
from pipeline.sources.folder import FolderConfig, FolderSource
from pipeline.stages import blocked
from pipeline.stages import filter as measuring
from pipeline.stages.download import DownloadConfig, download
from pipeline.stages.recaption import RecaptionConfig, check, recaption
from pipeline.stages.task import StageReport, Task, tables_of
from pipeline.storage import Directory

ANY_SIZE = FilterConfig(image=ImageFilterConfig(min_side=30))
TRUTH = {
    "background": "meadow",
    "objects": [{"category": "star", "attributes": ["red"], "box": [0.1, 0.1, 0.5, 0.5]}],
    "relations": [],
}


@pytest.fixture
def run(tmp_path: Path, image: Callable[..., bytes]) -> Directory:
    """A part of three fetched and measured images: one with truth, one without, one too small."""
    photos = tmp_path / "photos"
    photos.mkdir()
    sizes = {"a.jpg": (60, 50), "b.jpg": (50, 60), "c.jpg": (20, 20)}
    for seed, (name, (width, height)) in enumerate(sizes.items()):
        (photos / name).write_bytes(image(".jpg", seed, width, height))
    rows = [{"image": "a.jpg", "caption": "a star", "annotations": json.dumps(TRUTH)}]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FolderSource(
        FolderConfig(
            images=str(photos),
            captions=str(tmp_path / "captions.jsonl"),
            keep_columns=["annotations"],
        )
    )
    run = Directory(tmp_path / "run")
    (part,) = cut(run, source, 10)
    download(Task(run, "download", "x"), part, source, DownloadConfig(threads=2))
    measuring.measure(Task(run, "filter", "x"), part.name, ANY_SIZE, features=False)
    return run


def captions_of(run: Directory, config: dict[str, Any]) -> list[dict[str, Any]]:
    made = build(RecaptionConfig, config)
    recaption(Task(run, "recaption", "x"), "00000", made, ANY_SIZE)
    rows: list[dict[str, Any]] = tables_of(run, "recaption").read_table("00000.parquet").to_pylist()
    return rows


def test_annotations_captioner_reads_the_truth_and_says_where_there_is_none(
    run: Directory,
) -> None:
    rows = captions_of(run, {"captioners": [{"kind": "annotations"}], "max_captions": 3})
    assert len(rows) == 2  # the small image is not captioned
    with_truth, without = sorted(rows, key=lambda row: row["error"] or "")
    assert 1 <= len(with_truth["captions"]) <= 3
    assert all("star" in c["text"] or "meadow" in c["text"] for c in with_truth["captions"][:2])
    assert all(c["source"].startswith("annotations:") for c in with_truth["captions"])
    assert (without["captions"], without["error"]) == ([], "no_annotations")


def test_no_captioner_writes_no_caption(run: Directory) -> None:
    assert [row["captions"] for row in captions_of(run, {})] == [[], []]


def test_a_real_model_class_captions_from_a_local_folder(
    run: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tiny.save_blip(tmp_path / "blip")
    captioner = {
        "kind": "transformers", "model": str(folder), "device": "cpu", "max_new_tokens": 5,
    }  # fmt: skip
    rows = captions_of(run, {"captioners": [captioner, {"kind": "annotations"}]})
    assert len(rows) == 2
    for row in rows:
        # A model of random weights may babble; then the reason is recorded.
        sources = [caption["source"].split(":")[0] for caption in row["captions"]]
        assert "transformers" in sources or row["error"]
    assert any("annotations" in c["source"] for row in rows for c in row["captions"])


def _load(path: Path) -> Any:
    """Import a module of the captioners' tests: importlib mode puts no test folder on the path."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_recaption", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CAPTIONERS = Path(__file__).parents[1] / "captioners"
chat = _load(CAPTIONERS / "chat_server.py")
tiny = _load(CAPTIONERS / "tiny_models.py")
KEY = "sk-0123456789abcdefghijklmnop"


@pytest.fixture
def many(tmp_path: Path, image: Callable[..., bytes]) -> Directory:
    """A part of 24 fetched and measured images, of shorter sides 30 to 53."""
    photos = tmp_path / "many"
    photos.mkdir()
    for number in range(24):
        (photos / f"{number:02d}.jpg").write_bytes(image(".jpg", number, 60, 30 + number))
    source = FolderSource(FolderConfig(images=str(photos)))
    run = Directory(tmp_path / "run-of-many")
    (part,) = cut(run, source, 100)
    download(Task(run, "download", "x"), part, source, DownloadConfig(threads=2))
    measuring.measure(Task(run, "filter", "x"), part.name, ANY_SIZE, features=False)
    return run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("CAPTION_KEY", KEY)
    with chat.serving() as state:
        yield state


def asking(server: Any, **changes: Any) -> dict[str, Any]:
    captioner = {
        "kind": "openai", "base_url": server.base_url, "model": "tiny", "retries": 0,
        "api_key_env": "CAPTION_KEY",
    }  # fmt: skip
    return {"captioners": [captioner | changes]}


def report_of(run: Directory, config: dict[str, Any], min_side: int = 30) -> StageReport:
    filters = FilterConfig(image=ImageFilterConfig(min_side=min_side))
    made = build(RecaptionConfig, config)
    return recaption(Task(run, "recaption", "x"), "00000", made, filters)


def rows_of(run: Directory) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables_of(run, "recaption").read_table("00000.parquet").to_pylist()
    return rows


def test_no_caption_is_asked_for_blocked_images(many: Directory, server: Any) -> None:
    """A task carries the lists' digest: a list of a million uids would travel with every part."""
    table = tables_of(many, "download").read_table("00000.parquet")
    uids = sorted(table["uid"].to_pylist())[:5]
    lists = blocked.publish(many, BlockConfig(uids=[*uids, "0" * 32]))
    made = build(RecaptionConfig, asking(server))
    blocked.caption(Task(many, "recaption", "x"), "00000", made, ANY_SIZE, lists)
    assert {row["uid"] for row in rows_of(many)} == set(table["uid"].to_pylist()) - set(uids)
    assert len(server.asked) == 2 * (24 - 5)
    assert blocked.publish(many, BlockConfig()) is None
    blocked.caption(Task(many, "recaption", "x"), "00000", made, ANY_SIZE, None)
    assert len(rows_of(many)) == 24


def test_a_rerun_asks_nothing_whatever_changes_but_the_question(
    many: Directory, server: Any
) -> None:
    report = report_of(many, asking(server), min_side=40)
    assert (report.counts["images"], len(server.asked)) == (14, 28)
    first = rows_of(many)
    assert report.figures["openai_answers"] == 28 and report.figures["tokens"] == 28 * 7
    again = report_of(many, asking(server), min_side=40)
    assert rows_of(many) == first and len(server.asked) == 28
    assert (again.figures["openai_reused"], again.figures["tokens"]) == (28, 0)
    # A lower limit: only the new images. A higher one, other limits and names: nothing.
    assert report_of(many, asking(server), min_side=30).counts["images"] == 24
    assert len(server.asked) == 48
    report_of(many, asking(server, max_captions=1, name="other", concurrency=2), min_side=45)
    assert {c["source"] for row in rows_of(many) for c in row["captions"]} == {"other:short"}
    report_of(many, {**asking(server), "max_captions": 1})
    assert len(server.asked) == 48
    # Another prompt beside one that is known: one request per image.
    prompts = {"short": "Describe the image in short.", "new": "What is there?"}
    report_of(many, asking(server, prompts=prompts))
    assert len(server.asked) == 72
    report_of(many, asking(server, temperature=0.5))
    assert len(server.asked) == 120
    names = (tables_of(many, "answers")).names()
    assert names == ["00000.parquet"]


def test_failures_are_counted_by_reason_and_asked_again_by_a_later_run(
    many: Directory, server: Any
) -> None:
    ill: list[bytes] = []

    def answer(asked: Any, number: int) -> Any:
        if number % 8 == 1:
            ill.append(asked.image)
        if asked.image in ill:
            return chat.reply({}, 500)
        return chat.completion("I cannot help with that." if number % 8 == 2 else chat.TEXT)

    server.answer = answer
    one = {"prompts": {"short": "Describe."}, "concurrency": 1}
    report = report_of(many, asking(server, **one))
    assert report.counts["failed_server_error"] == 3
    assert report.counts["failed_refused"] == 3
    assert report.counts["without"] == 6
    assert sorted(filter(None, (row["error"] for row in rows_of(many)))) == (
        ["refused"] * 3 + ["server_error"] * 3
    )
    server.asked.clear()
    server.answer = lambda asked, number: chat.completion()
    report = report_of(many, {**asking(server, **one), "retry": 1})
    assert {asked.image for asked in server.asked} == set(ill) and len(server.asked) == 3
    assert report.counts["failed_refused"] == 3 and "failed_server_error" not in report.counts


def test_no_file_and_no_log_line_holds_the_key(
    many: Directory, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    replies = (
        lambda: chat.completion(f"A sign says {KEY} here."),
        lambda: chat.reply({"error": {"message": f"no {KEY}"}}, 400),
        lambda: chat.Reply(f"<html>{KEY}".encode()),
    )
    server.answer = lambda asked, number: replies[number % 3]()
    config = build(RecaptionConfig, asking(server))
    many.write_text("config.yaml", to_yaml(config))
    report_of(many, asking(server))
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in server.asked)
    files = [path for path in Path(many.path()).rglob("*") if path.is_file()]
    assert {"config.yaml", "00000.parquet"} <= {path.name for path in files}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    for stage in ("answers", "recaption"):  # Parquet compresses
        assert KEY not in str(tables_of(many, stage).read_table("00000.parquet").to_pylist())
    assert "[key]" in str(rows_of(many))
    assert KEY not in caplog.text + json.dumps(effective(config)) + to_yaml(config)


KILLED = """
import sys
from pipeline.captioners import answers
from pipeline.filters.blocklist import BlockConfig
from pipeline.filters.config import FilterConfig, ImageFilterConfig
from pipeline.settings import build
from pipeline.stages.recaption import RecaptionConfig, recaption
from pipeline.stages.task import Task
from pipeline.storage import Directory
answers.FLUSH_S = 0.05
config = RecaptionConfig.model_validate_json(sys.argv[2])
filters = FilterConfig(image=ImageFilterConfig(min_side=30))
recaption(Task(Directory(sys.argv[1]), "recaption", "x"), "00000", config, filters)
"""


def test_a_killed_task_does_not_pay_again_for_what_it_has_written(
    many: Directory, server: Any
) -> None:
    config = asking(server, prompts={"short": "Describe."}, concurrency=2)
    enough = threading.Event()

    def answer(asked: Any, number: int) -> Any:
        time.sleep(0.05)
        if number > 12:
            enough.set()
            server.release.wait(30)
        return chat.completion()

    server.answer = answer
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(many.url), json.dumps(config)])
    try:
        assert enough.wait(60)
        files = tables_of(many, "answers")
        deadline = time.monotonic() + 30
        while _written(files) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    paid = {row for name in files.names() for row in files.read_table(name)["uid"].to_pylist()}
    assert 8 <= len(paid) <= 12
    assert not tables_of(many, "recaption").exists("00000.parquet")
    server.release.set()
    server.asked.clear()
    server.answer = lambda asked, number: chat.completion()
    report = report_of(many, config)
    assert report.figures["openai_reused"] == len(paid)
    hashes = [hashlib.sha256(asked.image).hexdigest()[:32] for asked in server.asked]
    assert paid.isdisjoint(hashes)
    assert {row["uid"] for row in rows_of(many)} == paid | set(hashes)
    assert all(row["captions"] for row in rows_of(many))
    assert files.names() == ["00000.parquet"]


def _written(files: Directory) -> int:
    return sum(files.read_table(name).num_rows for name in files.names())


def test_a_model_is_not_run_again_for_images_it_has_captioned(
    many: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tiny.save_llava(tmp_path / "llava")
    captioner = {
        "kind": "transformers", "model": str(folder), "device": "cpu", "max_new_tokens": 3,
        "batch_size": 4,
    }  # fmt: skip
    config = {"captioners": [captioner, {"kind": "annotations"}]}
    first = report_of(many, config, min_side=40)
    assert first.figures["transformers_answers"] == 28
    assert first.figures["transformers_generating_seconds"] > 0
    assert first.figures["transformers_seconds"] >= first.figures["transformers_generating_seconds"]
    assert first.counts["failed_no_annotations"] == 14
    before = {row["uid"]: row["captions"] for row in rows_of(many)}
    second = report_of(many, config, min_side=30)
    figures = second.figures
    assert (figures["transformers_answers"], figures["transformers_reused"]) == (20, 28)
    after = {row["uid"]: row["captions"] for row in rows_of(many)}
    assert len(after) == 24 and before.items() <= after.items()


def test_captioners_of_a_run_load_their_models_once_over_its_parts(
    run: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders = [tiny.save_blip(tmp_path / "blip"), tiny.save_llava(tmp_path / "llava")]
    names, whole = [], loaded.VisionLanguageModel

    def load(name: str, *settings: Any) -> Any:
        names.append(Path(name).name)
        return whole(name, *settings)

    monkeypatch.setattr(loaded, "VisionLanguageModel", load)
    for words in ("a dog", "a cat", "a bird"):  # of another prompt each, as parts of other images
        captioners = [
            {"kind": "transformers", "name": folder.name, "model": str(folder), "device": "cpu",
             "max_new_tokens": 1, "prompts": {"short": words}}
            for folder in folders
        ]  # fmt: skip
        report = report_of(run, {"captioners": captioners})
        assert report.figures["blip_answers"] == report.figures["llava_answers"] == 2
    assert names == ["blip", "llava"]


def test_images_are_read_only_for_captioners_that_look(many: Directory, server: Any) -> None:
    report_of(many, asking(server))
    Path(many.path("raw/00000.tar")).unlink()
    config = asking(server)
    config["captioners"].append({"kind": "annotations"})
    assert report_of(many, config).counts["images"] == 24


def test_captioners_of_one_run_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="two are named annotations"):
        build(RecaptionConfig, {"captioners": [{"kind": "annotations"}] * 2})
    named = [{"kind": "annotations"}, {"kind": "annotations", "name": "weak", "error_rate": 0.5}]
    assert len(build(RecaptionConfig, {"captioners": named}).captioners) == 2


def test_missing_model_folder_is_refused_before_work() -> None:
    made = build(
        RecaptionConfig, {"captioners": [{"kind": "transformers", "model": "./no-such-folder"}]}
    )
    with pytest.raises(ConfigError, match="no-such-folder"):
        check(made)
