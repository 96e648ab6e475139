"""The recaption stage on real captioners: sentences from truth, and a tiny BLIP."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.filters.config import FilterConfig, ImageFilterConfig
from pipeline.part import cut
from pipeline.settings import ConfigError, build
from pipeline.sources.folder import FolderConfig, FolderSource
from pipeline.stages import filter as measuring
from pipeline.stages.download import DownloadConfig, download
from pipeline.stages.recaption import RecaptionConfig, check, recaption
from pipeline.stages.task import Task, tables_of
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
    models = Path(__file__).parents[1] / "captioners" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models_of_recaption", models)
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
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


def test_missing_model_folder_is_refused_before_work() -> None:
    made = build(
        RecaptionConfig, {"captioners": [{"kind": "transformers", "model": "./no-such-folder"}]}
    )
    with pytest.raises(ConfigError, match="no-such-folder"):
        check(made)
