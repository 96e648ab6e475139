"""The scores on scenes of which 30% have another scene's captions, and how that is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioners.scene_graph import parse
from pipeline.schema import SCORES
from pipeline.scorers.calibration.bars import bars, table
from pipeline.scorers.calibration.curves import auc, reliability, roc
from pipeline.scorers.calibration.measure import FAULTS, RIGHT, Calibration, calibrate
from pipeline.scorers.calibration.probes import probes
from pipeline.scorers.calibration.report import markdown, picture, write
from pipeline.scorers.calibration.world import WorldRun, scored_world
from pipeline.scorers.config import LinearAlignmentConfig, ScoreConfig
from pipeline.settings import ConfigError
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.world import scene
from pipeline.stages.score import score
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory

scores = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.77, 1.0]) | st.floats(0, 1), max_size=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldRun:
    config = ScoreConfig(alignment=LinearAlignmentConfig(folds=2, text_width=512))
    run = Directory(tmp_path_factory.mktemp("world") / "run")
    return scored_world(run, 800, 0.3, config, generated=4)


@pytest.fixture(scope="module")
def found(world: WorldRun) -> Calibration:
    return calibrate(world.run, images=120)


def test_swapped_captions_are_told_from_right_ones(world: WorldRun) -> None:
    assert 0.2 < sum(world.swapped.values()) / len(world.swapped) < 0.4
    measured = bars(world)
    sets, single = measured["caption set"], measured["alt text, two or more things"]
    for name in ("alignment", "quality"):
        assert (sets[name] or 0) > 0.92
        assert (single[name] or 0) > 0.87
    # Captions that were swapped together agree with each other, and are as well worded.
    for name in ("agreement", "wording"):
        assert abs((single[name] or 0) - 0.5) < 0.1
    assert "| caption set |" in table(measured)


def test_every_score_is_measured_against_every_fault(found: Calibration) -> None:
    groups = found.groups()
    assert set(groups) == {"alt", "alt_two", "generated", "made", "sets"}
    made = groups["made"].aucs()
    assert set(made) == set(FAULTS)
    assert (made["swapped"]["alignment"] or 0) > 0.85
    for fault in FAULTS:
        assert (made[fault]["agreement"] or 0) > 0.6
    assert (made["hallucinated"]["agreement"] or 0) > 0.85
    assert (groups["sets"].aucs()["swapped"]["alignment"] or 0) > 0.9
    assert groups["made"].counts[RIGHT] > 60
    assert found.reliability("alignment")["even"][1] < 0.2


def test_alt_texts_that_were_dropped_are_scored_too(tmp_path: Path) -> None:
    config = ScoreConfig(alignment=LinearAlignmentConfig(folds=2, text_width=64, components=8))
    world = scored_world(Directory(tmp_path / "run"), 80, 0.3, config, generated=4)
    selected = tables_of(world.run, "select").read_table("00000.parquet").to_pylist()
    for row in selected:
        row["captions"] = [] if world.swapped[row["uid"]] else row["captions"]
    table = pa.Table.from_pylist(selected)
    tables_of(world.run, "select").write_table("00000.parquet", table)
    score(Task(world.run, "score", "again"), "00000", config)
    dropped = calibrate(world.run, images=4).groups()["dropped"]
    assert dropped.counts["swapped"] == sum(world.swapped.values())
    assert dropped.counts[RIGHT] == 80 - dropped.counts["swapped"]
    assert len(dropped.values["swapped"]["wording"]) == dropped.counts["swapped"]


def test_a_calibration_is_written_as_numbers_table_and_picture(
    found: Calibration, tmp_path: Path
) -> None:
    paths = write(found, Directory(tmp_path))
    data = json.loads(Path(paths[0]).read_text())
    assert set(data["reliability"]) == set(SCORES)
    assert data["counts"]["alt"][RIGHT] + data["counts"]["alt"]["swapped"] == 800
    text = Path(paths[1]).read_text()
    assert "| attributes swapped |" in text
    assert f"{data['auc']['made']['swapped']['agreement']:.3f}" in text
    assert Path(paths[2]).read_bytes().startswith(b"\x89PNG")
    assert picture(found) == picture(found)
    assert markdown(Calibration()).startswith("# Calibration")


def test_a_run_that_knows_no_truth_is_refused(world: WorldRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no scored run"):
        calibrate(Directory(tmp_path))
    run = Directory(tmp_path / "run")
    for name in ("parts/parts.json", "config.yaml", "tables/score/00000.parquet"):
        run.write_bytes(name, world.run.read_bytes(name))
    table = tables_of(world.run, "download").read_table("00000.parquet", ["row", "captions"])
    tables_of(run, "download").write_table("00000.parquet", table)
    with pytest.raises(ConfigError, match=r"meta.annotations, meta.caption_fault"):
        calibrate(run)


def test_fit_and_score_are_a_function_of_their_input(tmp_path: Path) -> None:
    config = ScoreConfig(alignment=LinearAlignmentConfig(folds=2, text_width=64, components=8))
    one, other = (
        scored_world(Directory(tmp_path / name), 80, 0.3, config, generated=4)
        for name in ("one", "other")
    )
    for name in ("fit/linear.npz", "fit/references.parquet", "score/00000.parquet"):
        first, second = ((w.run / "tables").read_bytes(name) for w in (one, other))
        assert first == second


def test_probes_are_what_they_say() -> None:
    graphs = [parse(scene(ScenesConfig(), "train", n).annotations()) for n in range(60)]
    made = 0
    for number, graph in enumerate(graphs):
        captions = probes(graph, graphs[number - 1], f"{number}")
        if not captions:
            continue
        made += 1
        assert next(iter(captions)) == RIGHT
        assert len(set(captions.values())) == len(captions)
        if "hallucinated" in captions:
            absent = {"circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow"}
            absent -= {thing.category for thing in graph.things}
            assert any(name in captions["hallucinated"] for name in absent)
    assert made > 20


@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(right: list[float], wrong: list[float]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in right for b in wrong]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auc(right, wrong) == (None if expected is None else pytest.approx(expected))
    if expected is not None:
        x, y = roc(right, wrong)
        assert x[-1] == y[-1] == 1.0
        area = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(x, x[1:], y, y[1:], strict=False))
        assert area == pytest.approx(expected)


@given(scores.filter(bool), scores.filter(bool))
def test_bins_hold_every_caption_once(right: list[float], wrong: list[float]) -> None:
    for even in (False, True):
        bins, error = reliability(right, wrong, even)
        assert sum(one.weight for one in bins) == pytest.approx(1.0)
        share = 0.5 if even else len(right) / (len(right) + len(wrong))
        assert sum(one.weight * one.right for one in bins) == pytest.approx(share)
        assert 0.0 <= error <= 1.0


def test_a_calibrated_score_has_no_error() -> None:
    right, wrong = [0.75] * 3 + [0.25], [0.75] + [0.25] * 3
    assert reliability(right, wrong, even=False)[1] == pytest.approx(0.0)
    assert reliability([1.0] * 4, [1.0] * 4, even=False)[1] == pytest.approx(0.5)
