"""fit, score and embed over tables written by hand."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import SCORES
from pipeline.scorers.alignment_images import WIDTH
from pipeline.scorers.alignment_statistics import key_of
from pipeline.scorers.config import (
    ClipAlignmentConfig,
    EncoderAgreementConfig,
    LinearAlignmentConfig,
    QualityConfig,
    ScoreConfig,
)
from pipeline.scorers.embedding import EmbedConfig
from pipeline.stages import fit as fit_stage
from pipeline.stages.captioned import captioned
from pipeline.stages.embed import embed
from pipeline.stages.fit import fit, fit_settings, read_references
from pipeline.stages.score import resources, score
from pipeline.stages.task import Task, is_done, tables_of
from pipeline.storage import Directory

# pytest's importlib mode puts no test folder on the path.
_spec = importlib.util.spec_from_file_location(
    "tiny_encoders_of_score", Path(__file__).parents[1] / "scorers" / "tiny_encoders.py"
)
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
sys.modules["tiny_encoders_of_score"] = tiny
_spec.loader.exec_module(tiny)

COLOURS, THINGS = ["red", "blue", "green"], ["dog", "cat", "bird"]
LINEAR = LinearAlignmentConfig(folds=2, components=4, text_width=64)
CAPTIONS = pa.list_(pa.struct([("text", pa.string()), ("source", pa.string())]))


@dataclass
class Image:
    """A row of a part; `encoded` None for one that was not fetched."""

    uid: str
    alts: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    reason: str | None = None
    encoded: bytes | None = b""


def write_part(run: Directory, part: str, images: Sequence[Image]) -> None:
    """Write the tables and images of a part that fit, score and embed read."""
    rows = pa.array(range(100, 100 + len(images)), pa.int64())
    uids = pa.array([image.uid for image in images], pa.string())
    data = [image.encoded or b"" for image in images]
    (run / "raw").write_bytes(f"{part}.tar", b"".join(data))
    draw = np.random.RandomState(int(part))
    features = draw.normal(size=(len(images), WIDTH)).astype(np.float32)
    for number, image in enumerate(images):
        # An image "shows" its first caption's colour and thing.
        for text in (image.alts or image.written)[:1]:
            for place, word in enumerate([*COLOURS, *THINGS]):
                features[number, place] += 4.0 * (word in text)
    lost = [None if image.encoded is not None else "http_404" for image in images]
    written = [[{"text": t, "source": "model:short"} for t in i.written] for i in images]
    base = {"row": rows, "uid": uids}
    tables = {
        "download": {
            **base,
            "reason": pa.array(lost, pa.string()),
            "raw": pa.array([f"{part}.tar"] * len(images)),
            "image_offset": pa.array(np.cumsum([0, *map(len, data)])[:-1], pa.int64()),
            "image_size": pa.array(list(map(len, data)), pa.int32()),
        },
        "filter": {
            **base,
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), WIDTH),
        },
        "select": {
            **base,
            "reason": pa.array([image.reason for image in images], pa.string()),
            "captions": pa.array([image.alts for image in images], pa.list_(pa.string())),
        },
        "recaption": {"uid": uids, "captions": pa.array(written, CAPTIONS)},
    }
    for stage, columns in tables.items():
        tables_of(run, stage).write_table(f"{part}.parquet", pa.table(columns))


def images(first: int, count: int) -> list[Image]:
    found = []
    for number in range(first, first + count):
        colour, thing = COLOURS[number % 3], THINGS[number // 3 % 3]
        alts = [f"a {colour} {thing} on the grass"]
        found.append(Image(f"{number:032x}", alts, [f"the {thing} runs", f"a {colour} {thing}"]))
    return found


def table(run: Directory, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tables_of(run, "score").read_table(f"{part}.parquet").to_pylist()
    return found


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "run")


def do(run: Directory, parts: Sequence[str], config: ScoreConfig, *settings: Any) -> None:
    fit(Task(run, "fit", "mark"), list(parts), config, *settings)
    for part in parts:
        score(Task(run, "score", "mark"), part, config, *settings)


def test_every_caption_of_every_kept_image_is_scored(run: Directory) -> None:
    listed = images(0, 120)
    listed[0].reason = "too_small"
    listed[1].alts, listed[1].written = [], []
    listed[2].written.append(listed[2].alts[0])
    write_part(run, "00000", listed)
    do(run, ["00000"], ScoreConfig(alignment=LINEAR))
    found = table(run, "00000")
    assert [row["row"] for row in found] == list(range(101, 220))
    assert found[0]["captions"] == []
    assert [(c["text"], c["source"]) for c in found[1]["captions"]] == [
        ("a green dog on the grass", "alt"),
        ("the dog runs", "model:short"),
        ("a green dog", "model:short"),
    ]
    for row in found[1:]:
        for caption in row["captions"]:
            assert caption["cosine"] is None
            for name in SCORES:
                assert 0.0 <= caption[name] <= 1.0
            nouns = [caption["text"][a:b] for a, b in caption["nouns"]]
            assert set(nouns) & set(THINGS)
    assert is_done(run, "score", "00000", "mark")
    assert is_done(run, "fit", "all", "mark")


def test_scores_that_are_off_are_null(run: Directory) -> None:
    write_part(run, "00000", images(0, 70))
    config = ScoreConfig(wording=False, language=None, alignment=None, agreement=None)
    do(run, ["00000"], config)
    (caption, *_) = table(run, "00000")[0]["captions"]
    assert [caption[name] for name in SCORES] == [None] * len(SCORES)
    assert tables_of(run, "fit").names() == ["all.parquet"]


def test_too_few_pairs_leave_alignment_null(run: Directory) -> None:
    write_part(run, "00000", images(0, 10))
    do(run, ["00000"], ScoreConfig(alignment=LINEAR))
    assert {c["alignment"] for row in table(run, "00000") for c in row["captions"]} == {None}


def test_a_part_of_nothing_kept_is_a_table_of_no_rows(run: Directory) -> None:
    write_part(run, "00000", [Image("a" * 32, reason="blank")])
    do(run, ["00000"], ScoreConfig(alignment=LINEAR))
    assert table(run, "00000") == []


def test_the_sample_is_the_lowest_hashes_however_parts_are_cut(
    run: Directory, tmp_path: Path
) -> None:
    listed = images(0, 400)
    other = Directory(tmp_path / "other")
    names = [f"{n:05d}" for n in range(4)]
    for number, name in enumerate(names):
        write_part(run, name, listed[number * 100 : number * 100 + 100])
    write_part(other, "00000", listed[::-1])

    def sampled(where: Directory, parts: list[str], most: int) -> set[str]:
        return {uid for some in fit_stage._sample(where, parts, most) for uid in some.uids}

    for most in (1, 57, 399, 400, 10_000):
        found = sampled(run, names, most)
        assert found == sampled(other, ["00000"], most)
        lowest = sorted((image.uid for image in listed), key=key_of)[: len(found)]
        assert found == set(lowest)
        assert min(most, 400) - 2 <= len(found) <= most


def test_a_huge_run_is_sampled_from_parts_spread_over_it(
    run: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_stage, "_MOST_PARTS", 3)
    names = [f"{n:05d}" for n in range(7)]
    for number, name in enumerate(names):
        write_part(run, name, images(number * 10, 10))
    parts = [some.part for some in fit_stage._sample(run, names, 1000)]
    assert parts == ["00000", "00002", "00004"]
    assert sum(len(some.uids) for some in fit_stage._sample(run, names, 12)) <= 12


def test_weights_of_quality_do_not_fit_again() -> None:
    one, other = ScoreConfig(), ScoreConfig(quality=QualityConfig(wording=0.0))
    assert fit_settings(one) == fit_settings(other)
    assert fit_settings(one) != fit_settings(ScoreConfig(fit_images=7))


def test_references_are_of_every_source(run: Directory) -> None:
    write_part(run, "00000", images(0, 30))
    fit(Task(run, "fit", "mark"), ["00000"], ScoreConfig(alignment=None))
    references = read_references(run)
    assert {r.source for r in references} == {"alt", "model:short"}
    texts = {r.text for r in references}
    assert texts <= {c["text"] for some in captioned(run, "00000").captions for c in some}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EmbedConfig:
    folder = tiny.save_clip(tmp_path_factory.mktemp("clip"))
    return EmbedConfig(model=str(folder), batch_size=8, resources={"GPU": 1})


def encoded(listed: list[Image]) -> list[Image]:
    for number, image in enumerate(listed):
        image.encoded = tiny.picture(number)
    listed[3].encoded = b"no image"
    listed[4].encoded = None
    listed[4].reason = "http_404"
    return listed


def test_clip_scores_by_the_cosine_of_stored_embeddings(run: Directory, clip: EmbedConfig) -> None:
    write_part(run, "00000", encoded(images(0, 80)))
    report = embed(Task(run, "embed", "mark"), "00000", clip)
    stored = tables_of(run, "embed").read_table("00000.parquet")
    assert report.counts == {"images": 79}
    assert stored.schema.field("embedding").type.value_type == pa.float16()
    vectors = {row["row"]: row["embedding"] for row in stored.to_pylist()}
    assert vectors[103] is None
    assert 104 not in vectors
    do(run, ["00000"], ScoreConfig(alignment=ClipAlignmentConfig()), clip)
    from pipeline.scorers.dual_encoder import load_dual_encoder

    pairs = []
    for row in table(run, "00000"):
        for caption in row["captions"]:
            if row["row"] == 103:
                assert caption["cosine"] is caption["alignment"] is None
                continue
            image = np.array(vectors[row["row"]], np.float64)
            text = load_dual_encoder(clip).texts([caption["text"]])[0]
            expected = float(image @ text / np.linalg.norm(image))
            assert caption["cosine"] == pytest.approx(expected, abs=1e-4)
            pairs.append((caption["cosine"], caption["alignment"]))
    assert all(0.0 <= value <= 1.0 for _, value in pairs)
    ordered = [value for _, value in sorted(pairs)]
    assert ordered == sorted(ordered)


def test_an_empty_part_has_embeddings_of_the_models_width(
    run: Directory, clip: EmbedConfig
) -> None:
    write_part(run, "00000", [Image("a" * 32, encoded=None)])
    embed(Task(run, "embed", "mark"), "00000", clip)
    stored = tables_of(run, "embed").read_table("00000.parquet")
    assert stored.num_rows == 0
    assert stored.schema.field("embedding").type.list_size == 24


def test_agreement_by_a_text_encoder(run: Directory, tmp_path: Path) -> None:
    write_part(run, "00000", images(0, 40))
    agreement = EncoderAgreementConfig(
        model=str(tiny.save_bert(tmp_path / "bert")), resources={"GPU": 2}
    )
    config = ScoreConfig(alignment=None, agreement=agreement)
    do(run, ["00000"], config)
    values = [c["agreement"] for row in table(run, "00000") for c in row["captions"]]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert len(set(values)) > 5
    assert resources(config) == {"GPU": 2}


def test_tasks_ask_for_what_their_models_need(clip: EmbedConfig) -> None:
    assert resources(ScoreConfig(), clip) == {}
    assert resources(ScoreConfig(alignment=ClipAlignmentConfig()), clip) == {"GPU": 1}
