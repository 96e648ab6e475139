"""The last verdicts, against a plain reference that goes caption by caption."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters.config import FilterConfig
from pipeline.settings import ConfigError, build
from pipeline.stages.choose import choose
from pipeline.stages.task import Task, is_done, tables_of
from pipeline.storage import Directory

#: text -> its nouns, as character spans; the last has letters of more than one byte.
TEXTS = {
    "A red dog": [[6, 9]],
    "a cat and a Dog": [[2, 5], [12, 15]],
    "that is it": [],
    "\u00e9t\u00e9: na\u00efve caf\u00e9 \u2014 dog": [[11, 15], [18, 21]],
}
CONCEPTS = {"A red dog": {"dog"}, "a cat and a Dog": {"cat", "dog"}, "that is it": set()}
CONCEPTS[list(TEXTS)[3]] = {"caf\u00e9", "dog"}


@dataclass(frozen=True)
class Image:
    """A scored image: its captions as (text, quality, cosine)."""

    captions: tuple[tuple[str, float | None, float | None], ...]
    split: str = "train"


def write(run: Directory, parts: list[list[Image]]) -> list[str]:
    names, number = [], 0
    for images in parts:
        names.append(f"{len(names):05d}")
        rows = [2 * n for n in range(number, number + len(images))]
        number += len(images)
        scored = [
            {
                "row": row,
                "uid": f"{row:032x}",
                "captions": [
                    {"text": t, "quality": q, "cosine": c, "alignment": None, "nouns": TEXTS[t]}
                    for t, q, c in image.captions
                ],
            }
            for row, image in zip(rows, images, strict=True)
        ]
        floats = [(name, pa.float32()) for name in ("quality", "cosine", "alignment")]
        spans = pa.list_(pa.list_(pa.int32()))
        caption = pa.struct([("text", pa.string()), *floats, ("nouns", spans)])
        schema = pa.schema(
            [("row", pa.int64()), ("uid", pa.string()), ("captions", pa.list_(caption))]
        )
        name = f"{names[-1]}.parquet"
        tables_of(run, "score").write_table(name, pa.Table.from_pylist(scored, schema=schema))
        # The download table has rows that were dropped before, too.
        every = [n for row in rows for n in (row, row + 1)]
        outcome = {
            "row": pa.array(every, pa.int64()),
            "split": pa.array([image.split for image in images for _ in "ab"], pa.string()),
            "image_size": pa.array([100 + n for n in every], pa.int64()),
        }
        tables_of(run, "download").write_table(name, pa.table(outcome))
    return names


def run_choose(
    run: Directory, parts: list[list[Image]], least: int, **config: Any
) -> tuple[list[dict[str, Any]], Any]:
    names = write(run, parts)
    report = choose(Task(run, "choose", "mark"), names, build(FilterConfig, config), least)
    assert is_done(run, "choose", "all", "mark")
    tables = [tables_of(run, "choose").read_table(f"{name}.parquet") for name in names]
    kept = [table["reason"].null_count for table in tables]
    marked = tables_of(run, "choose").read_table("all.parquet").to_pydict()
    assert marked == {"part": names, "kept": kept}
    return [row for table in tables for row in table.to_pylist()], report


def reference(
    images: list[Image],
    least: int,
    min_quality: float | None,
    min_cosine: float | None,
    top: float | None,
) -> list[tuple[str | None, list[str | None]]]:
    judged = []
    for image in images:
        reasons: list[str | None] = []
        for _, quality, cosine in image.captions:
            if min_cosine is not None and cosine is not None and cosine < min_cosine:
                reasons.append("low_cosine")
            elif min_quality is not None and quality is not None and quality < min_quality:
                reasons.append("low_quality")
            else:
                reasons.append(None)
        judged.append(("no_caption" if reasons.count(None) < least else None, reasons))

    def best(place: int) -> float:
        scores = [
            -math.inf if quality is None else quality
            for (_, quality, _), reason in zip(
                images[place].captions, judged[place][1], strict=True
            )
            if reason is None
        ]
        return max(scores, default=-math.inf)

    if top is not None:
        rows = [
            i for i, image in enumerate(images) if judged[i][0] is None and image.split == "train"
        ]
        ranked = sorted(rows, key=lambda i: (-best(i), i))
        for i in ranked[math.ceil(len(rows) * top) :]:
            judged[i] = ("below_top_fraction", judged[i][1])
    return [
        (reason, [r or ("image_dropped" if reason else None) for r in reasons])
        for reason, reasons in judged
    ]


SCORE = st.none() | st.sampled_from([0.25, 0.5, 0.75])
IMAGE = st.builds(
    Image,
    st.lists(st.tuples(st.sampled_from(list(TEXTS)), SCORE, SCORE), max_size=3).map(tuple),
    st.sampled_from(["train", "train", "test"]),
)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(IMAGE, max_size=6), min_size=1, max_size=3),
    least=st.integers(0, 2),
    limits=st.tuples(st.sampled_from([None, 0.5]), st.sampled_from([None, 0.5])),
    top=st.sampled_from([None, 0.25, 0.5, 1.0]),
)
def test_choose_is_the_plain_reference(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[Image]],
    least: int,
    limits: tuple[float | None, float | None],
    top: float | None,
) -> None:
    min_quality, min_cosine = limits
    run = Directory(tmp_path_factory.getbasetemp() / "choose")
    images = [image for part in parts for image in part]
    captions = [caption for image in images for caption in image.captions]
    scores = {"min_quality": min_quality, "min_cosine": min_cosine, "top_fraction": top}
    needs_quality = min_quality is not None or top is not None
    lacking = captions and (
        (min_cosine is not None and all(c is None for *_, c in captions))
        or (needs_quality and all(q is None for _, q, _ in captions))
    )
    if lacking:
        with pytest.raises(ConfigError, match=r"filter\.scores\.\w+: no caption has the score"):
            run_choose(run, parts, least, scores=scores)
        return
    found, report = run_choose(run, parts, least, scores=scores)
    expected = reference(images, least, min_quality, min_cosine, top)
    assert [(row["reason"], row["caption_reasons"]) for row in found] == expected
    assert [row["row"] for row in found] == [2 * n for n in range(len(images))]
    assert [row["size"] for row in found] == [100 + 2 * n for n in range(len(images))]
    assert [row["split"] for row in found] == [image.split for image in images]
    kept = sum(reason is None for reason, _ in expected)
    assert report.counts == {"scored": len(images), "kept": kept}


def one(text: str, quality: float = 0.5, split: str = "train") -> Image:
    return Image(((text, quality, None),), split)


DOG, BOTH, NOTHING, CAFE = TEXTS


def balanced(tmp_path: Path, images: list[Image], **balance: Any) -> list[str | None]:
    half = len(images) // 2
    parts = [images[:half], images[half:]]
    found, _ = run_choose(Directory(tmp_path), parts, 1, balance=balance)
    for row in found:
        assert all((reason is None) == (row["reason"] is None) for reason in row["caption_reasons"])
    return [row["reason"] for row in found]


def test_balancing_thins_common_nouns_and_keeps_rare_ones(tmp_path: Path) -> None:
    images = [one(DOG) for _ in range(400)] + [one(CAFE), one(BOTH), one(NOTHING)]
    images += [one(DOG, split="test") for _ in range(50)]
    reasons = balanced(tmp_path, images, limit=100)
    # 402 train images have a dog: each stays with probability 100/402.
    assert 70 <= reasons[:400].count(None) <= 130
    assert set(reasons[:400]) == {None, "balanced_out"}
    assert reasons[400:403] == [None, None, "no_concept"]  # "café" and "cat" are on one image each
    assert reasons[403:] == [None] * 50  # a held-out split is left as it is
    assert balanced(tmp_path / "again", images, limit=100) == reasons
    assert balanced(tmp_path / "seed", images, limit=100, seed=1) != reasons
    kept = balanced(tmp_path / "kept", images, limit=100, unmatched="keep")
    assert kept[402] is None
    assert kept[:402] == reasons[:402]
    assert balanced(tmp_path / "all", images, limit=1000).count(None) == len(images) - 1


def test_who_is_drawn_depends_on_the_uid_and_not_on_its_place(tmp_path: Path) -> None:
    images = [one(DOG) for _ in range(100)]
    names = write(Directory(tmp_path / "one"), [images])
    split = write(Directory(tmp_path / "two"), [images[:30], images[30:]])
    found = []
    for folder, parts in (("one", names), ("two", split)):
        run = Directory(tmp_path / folder)
        config = build(FilterConfig, {"balance": {"limit": 40}})
        choose(Task(run, "choose", "mark"), parts, config, 1)
        tables = [tables_of(run, "choose").read_table(f"{part}.parquet") for part in parts]
        found.append([row for table in tables for row in table["reason"].to_pylist()])
    assert found[0] == found[1]
    assert 20 <= found[0].count(None) <= 60


def test_balancing_by_a_list_of_concepts(tmp_path: Path) -> None:
    listed = tmp_path / "concepts.txt"
    listed.write_text("# animals\nDog\nred   DOG\n\ncafé\n", encoding="utf-8")
    images = [one(DOG), one(BOTH), one(NOTHING), one(CAFE)]
    reasons = balanced(tmp_path / "run", images, concepts=str(listed), limit=1000)
    assert reasons == [None, None, "no_concept", None]
    with pytest.raises(ConfigError, match=r"filter\.balance\.concepts: .*missing"):
        balanced(tmp_path / "lost", images, concepts=str(tmp_path / "missing"))


def test_balancing_comes_after_the_scores(tmp_path: Path) -> None:
    images = [one(DOG, 0.9) for _ in range(10)] + [one(DOG, 0.1) for _ in range(90)]
    found, _ = run_choose(
        Directory(tmp_path), [images], 1, scores={"min_quality": 0.5}, balance={"limit": 10}
    )
    # Ten dogs are left when they are counted, so all of them stay.
    assert [row["reason"] for row in found] == [None] * 10 + ["no_caption"] * 90
    assert (
        np.array([row["caption_reasons"] for row in found[10:]]).tolist() == [["low_quality"]] * 90
    )
