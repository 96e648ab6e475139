"""Measuring a part: what the stored images and the download table say, row by row."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.filters.config import FilterConfig
from pipeline.filters.measures import signature_array
from pipeline.filters.verdicts import image_reasons
from pipeline.settings import build
from pipeline.stages.filter import SCHEMA, measure, measured_settings
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1])


def moving() -> bytes:
    frames = [Image.effect_noise((240, 320), 60 + n).convert("RGB") for n in range(2)]
    file = BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def measured(folder: Path, rows: list[dict[str, Any]], **config: Any) -> tuple[pa.Table, Any]:
    """Store the rows' images as `download` does, measure them, and return table and report."""
    run = Directory(folder)
    data, places = b"", []
    for row in rows:
        places.append(len(data))
        data += row.get("image") or b""
    (run / "raw").write_bytes("00000.tar", data)
    outcome = {
        "row": pa.array(range(len(rows)), pa.int64()),
        "uid": [f"{number:032x}" for number in range(len(rows))],
        "split": ["train"] * len(rows),
        "reason": pa.array([None if "image" in row else "timeout" for row in rows], pa.string()),
        "captions": pa.array([row.get("captions") for row in rows], pa.list_(pa.string())),
        "animated": pa.array([row.get("animated") for row in rows], pa.bool_()),
        "raw": ["00000.tar"] * len(rows),
        "image_offset": places,
        "image_size": [len(row.get("image") or b"") for row in rows],
    }
    tables_of(run, "download").write_table("00000.parquet", pa.table(outcome))
    rules = build(FilterConfig, config)
    report = measure(Task(run, "filter", "mark"), "00000", rules, False)
    return tables_of(run, "filter").read_table("00000.parquet"), report


def test_a_row_for_each_fetched_row_with_its_captions(tmp_path: Path) -> None:
    rows = [
        {"image": jpeg(), "captions": ["a red dog", "IMG_1.jpg"]},
        {"captions": ["never seen"]},
        {"image": b"", "captions": None},
        {"image": jpeg(1), "captions": []},
    ]
    table, report = measured(tmp_path, rows)
    assert table.schema.equals(SCHEMA)
    assert table["row"].to_pylist() == [0, 2, 3]
    assert table["decode_error"].to_pylist() == [None, "empty", None]
    assert [len(row) for row in table["captions"].to_pylist()] == [2, 0, 0]
    assert [c["filename_like"] for c in table["captions"][0].as_py()] == [False, True]
    assert table["captions"][0].as_py()[0]["noun_share"] is None
    assert table["signatures"].to_pylist() == [
        signature_array(["a red dog", "IMG_1.jpg"]).to_pylist(), [], []
    ]  # fmt: skip
    assert report.counts == {"images": 3}
    assert report.bytes == len(jpeg()) + len(jpeg(1))


def test_animation_is_seen_in_the_stored_file_or_when_it_was_fetched(tmp_path: Path) -> None:
    rows = [
        {"image": jpeg(), "animated": False},
        {"image": jpeg(), "animated": True},
        {"image": moving(), "animated": None},
        {"image": b"no image", "animated": False},
    ]
    table, _ = measured(tmp_path, rows)
    assert table["animated"].to_pylist() == [False, True, True, None]
    reasons = image_reasons(table, FilterConfig()).to_pylist()
    assert reasons == [None, "animated", "animated", "undecodable"]


def test_word_classes_are_a_setting_of_the_measures(tmp_path: Path) -> None:
    rows = [{"image": jpeg(), "captions": ["two dogs run", "and so on"]}]
    table, _ = measured(tmp_path, rows, caption={"word_classes": True})
    shares = [caption["verb_share"] for caption in table["captions"][0].as_py()]
    assert shares == pytest.approx([1 / 3, 0])
    base = measured_settings(FilterConfig())
    assert measured_settings(build(FilterConfig, {"caption": {"word_classes": True}})) != base
    thresholds = {"caption": {"min_words": 9}, "image": {"min_side": 9}, "preset": "strict"}
    assert measured_settings(build(FilterConfig, thresholds)) == base


def test_a_part_without_fetched_rows_has_an_empty_table(tmp_path: Path) -> None:
    table, report = measured(tmp_path, [{"captions": ["lost"]}])
    assert table.schema.equals(SCHEMA)
    assert (table.num_rows, report.counts) == (0, {"images": 0})
