"""From folders of finished runs to result.json: what is paired, what is undefined, what is cut."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import ConfigError, load
from tcjepa.ablate.measurements import random_arms
from tcjepa.ablate.portable import portable
from tcjepa.ablate.results import RANK, UNITLESS, can_be_lost, outcomes
from tcjepa.ablate.schema import StudyResult
from tcjepa.ablate.study import StudyConfig, Trial, arms_of, training_config, trials_of
from tcjepa.ablate.summary import summarise
from tcjepa.config import TrainConfig, differences
from tcjepa.evaluate import agreement, grounding
from tcjepa.evaluate.tally import TALLIES_FILE
from tcjepa.train.run import EVALUATION_FILE
from tests.tcjepa.ablate.pretended import RANDOM_LEVEL, finish, pretend
from tests.tcjepa.ablate.worlds import TINY, study

LEVELS = {"clean": 0.7, "rate 0.0": 0.7, "rate 0.5": 0.55, "rate 1.0": 0.4, "I-JEPA": 0.4}
MADE: dict[str, Any] = {
    "axes": {"data.noise.rate": [0.0, 0.5, 1.0]},
    "references": {"I-JEPA": ["model.text=null", "data.noise.kind=none"]},
    "contrasts": [["rate 0.0", "I-JEPA"], ["rate 1.0", "rate 1.0"]],
    "recovery": [
        {"name": "all", "clean": "rate 0.0", "noisy": "rate 1.0", "remedies": ["rate 0.5"]},
        {"name": "none", "clean": "rate 1.0", "noisy": "rate 1.0", "remedies": ["rate 0.5"]},
    ],
    "seeds": [0, 1, 2],
}


def level(trial: Trial) -> float:
    return LEVELS[trial.arm.name]


def opened(folder: Path, **changes: Any) -> StudyConfig:
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    return study(folder, **{**MADE, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    pretend(opened(folder), folder / "base.yaml", level)
    return folder


@pytest.fixture(scope="module")
def result(world: Path) -> StudyResult:
    made = opened(world)
    return summarise(made, outcomes(made), f"python -m tcjepa ablate {world}/study.yaml --report")


def test_estimates_are_means_of_the_runs_with_intervals_around_them(result: StudyResult) -> None:
    own = [t.values["linear shape"] for t in result.trials if t.arm == "rate 0.5"]
    found = result.estimates["linear shape"]["rate 0.5"]
    assert found.value == pytest.approx(sum(own) / 3)
    assert found.seeds == 3
    for interval in (found.interval, found.student):
        assert interval is not None and interval[0] < sum(own) / 3 < interval[1]
    assert {m.name: (m.images, m.unit) for m in result.measures} == {
        "linear colour": (80, "%"), "linear shape": (80, "%"), "mIoU": (80, "%"),
        "kNN colour": (80, "%"), "kNN shape": (80, "%"),
        "effective rank": (0, ""), "feature std": (0, ""),
    }  # fmt: skip


def test_random_weights_are_one_arm_whose_seeds_count_once(result: StudyResult) -> None:
    twins = [trial for trial in result.trials if trial.arm == "random weights"]
    assert [trial.seed for trial in twins] == [0, 1, 2]
    value = result.estimates["linear shape"]["random weights"].value
    assert value == pytest.approx(100 * RANDOM_LEVEL, abs=12)


def test_contrasts_are_paired(result: StudyResult) -> None:
    apart, itself = result.contrasts
    assert apart.name == "rate 0.0 − I-JEPA"
    found, single = apart.measures["mIoU"], result.estimates["mIoU"]
    first, second = single["rate 0.0"], single["I-JEPA"]
    assert found.value == pytest.approx((first.value or 0) - (second.value or 0))
    assert found.interval is not None and found.interval[0] > 0
    widths = [e.interval[1] - e.interval[0] for e in (first, second) if e.interval]
    # Seeds and images that are hard for both fall out of the difference.
    assert found.interval[1] - found.interval[0] < (widths[0] ** 2 + widths[1] ** 2) ** 0.5
    assert all((e.value, e.interval) == (0, (0, 0)) for e in itself.measures.values())


def test_recovery_is_a_share_of_the_loss_and_undefined_without_one(result: StudyResult) -> None:
    everything, nothing = result.recoveries
    lost = everything.losses["mIoU"]
    share = everything.shares["rate 0.5"]["mIoU"]
    assert lost.value == pytest.approx(20, abs=4)
    assert share.value == pytest.approx(0.5, abs=0.15)
    assert share.interval is not None and 0 < share.interval[0] < 0.5 < share.interval[1] < 1
    assert "effective rank" not in everything.losses
    assert nothing.losses["mIoU"].value == 0
    assert all(e.value is None for e in nothing.shares["rate 0.5"].values())


@pytest.mark.parametrize("left", [0.0, 1.0])
def test_nothing_is_recovered_where_one_of_the_two_arms_was_left_out(
    left: float, world: Path
) -> None:
    made = opened(world, recovery=MADE["recovery"][:1], only={"data.noise.rate": [left, 0.5]})
    assert summarise(made, outcomes(made), "").recoveries == ()


def test_untrained_text_paths_stand_for_themselves_only(world: Path) -> None:
    """Arms with one encoder share its untrained twin, but not what other predictors made of it."""
    made = [
        replace(outcome, random={**outcome.random, agreement.GAIN: 0.1}, text_path=path)
        for outcome, path in zip(outcomes(opened(world))[:2], ("one", "other"), strict=True)
    ]
    (alone,) = random_arms(made[:1]).values()
    (together,) = random_arms(made).values()
    assert alone.keys() - together.keys() == {agreement.GAIN}
    without = replace(made[1], random=dict(outcomes(opened(world))[1].random))
    (beside,) = random_arms([made[0], without]).values()
    assert beside.keys() == alone.keys()


AGREES, POINTS = agreement.GAIN, grounding.POINTING
OF_ENCODER = {"linear shape", "kNN shape", "mIoU", RANK}


@pytest.mark.parametrize(
    ("keys", "common", "left_out"),
    [
        (["masks.targets=2"], [], {AGREES}),
        (["data.caption_sources=[alt]"], [], {AGREES, POINTS}),
        (["data.captions_per_image=1"], [], {AGREES, POINTS}),
        (["data.captions_per_image=1"], ["evaluate.captions_per_image=2"], set()),
        (["evaluate.captioned_images=7"], [], {AGREES, POINTS}),
        (["train.lr=0.5"], [], set()),
        (["data.shards=others"], [], {AGREES, POINTS, *OF_ENCODER}),
        (["data.shards=others"], ["evaluate.shards=these"], set()),
        (["data.shards=others"], ["evaluate.folder=photographs"], set()),
        (["evaluate.max_train=10"], [], {AGREES, POINTS, *OF_ENCODER}),
        (["evaluate.labels=[shape,colour]"], [], set()),
    ],
)
def test_a_random_twin_stands_for_arms_that_are_tested_alike(
    keys: list[str], common: list[str], left_out: set[str], tmp_path: Path
) -> None:
    made = opened(
        tmp_path, axes={"data.noise.rate": [0.0]}, set=common, references={"other": keys},
        contrasts=[], recovery=[], seeds=[0],
    )  # fmt: skip
    pretend(made, tmp_path / "base.yaml", lambda _: 0.5)
    measured = {AGREES: 0.1, POINTS: 30.0}
    found = [replace(one, random={**one.random, **measured}) for one in outcomes(made)]
    known = {measure for own in random_arms(found).values() for measure in own}
    assert {AGREES, POINTS, *OF_ENCODER} - known == left_out
    roles = [arm.role for arm in summarise(made, outcomes(made), "").arms]
    assert ("random weights" in roles) == (not left_out >= OF_ENCODER)  # none without a value


def test_what_can_be_lost() -> None:
    lost = ["linear colour", "mIoU", grounding.POINTING, agreement.GAIN]
    others = sorted({grounding.CHANCE, *UNITLESS} - {agreement.GAIN})
    assert [name for name in [*lost, *others] if can_be_lost(name)] == lost


def test_slope_is_the_change_per_unit_of_x(result: StudyResult) -> None:
    (slope,) = result.slopes
    ends = [result.estimates["mIoU"][name].value or 0 for name in ("rate 0.0", "rate 1.0")]
    found = slope.measures["mIoU"]
    assert found.value == pytest.approx(ends[1] - ends[0])  # of three evenly spaced points
    assert found.interval is not None and found.interval[1] < 0


def test_a_slope_says_on_which_seeds_and_arms_it_is(tmp_path: Path) -> None:
    made = opened(tmp_path)
    for trial in trials_of(made):
        if trial.arm.name != "rate 0.5" and (trial.arm.name, trial.seed) != ("rate 1.0", 2):
            finish(made, trial, tmp_path / "base.yaml", level(trial))
    (slope,) = summarise(made, outcomes(made), "").slopes
    assert slope.measures["mIoU"].seeds == 2
    assert slope.points["mIoU"] == (2, 3)


def test_slopes_of_whole_curves_lack_nothing(result: StudyResult) -> None:
    assert [slope.points for slope in result.slopes] == [{}]


def test_an_arm_alone_is_run_by_a_command_of_its_own(result: StudyResult, world: Path) -> None:
    made, commands = opened(world), dict(
        reversed(line.split("  # ")) for line in result.commands[1:]
    )  # fmt: skip
    assert list(commands) == [arm.name for arm in arms_of(made)]
    words = shlex.split(commands["rate 0.5"])
    assert words[:5] == ["python", "-m", "tcjepa", "pretrain", "base.yaml"]
    config = load(TrainConfig, world / "base.yaml", words[5:])
    trial = next(t for t in trials_of(made) if t.arm.name == "rate 0.5" and t.seed == 0)
    asked = training_config(made, trial, world / "base.yaml").model_dump(mode="json")
    assert differences(asked, config.model_dump(mode="json")) == []
    assert (config.run, config.data.cache_dir) == ("runs/study-rate-0.5", None)


def test_nothing_says_where_the_files_lay(result: StudyResult, world: Path) -> None:
    text = result.model_dump_json()
    assert str(world) not in text and str(world.parent) not in text
    assert result.command == "python -m tcjepa ablate study.yaml --report"
    assert result.commands[0] == "python -m tcjepa ablate study.yaml"
    assert (result.hardware, result.minutes) == ("Pretended, 2 cores (12 runs)", 18.0)


def test_runs_without_a_result_are_listed_with_their_last_words(tmp_path: Path) -> None:
    made = opened(tmp_path, seeds=[0, 1])
    base = tmp_path / "base.yaml"
    first, second, *rest = trials_of(made)
    for trial in rest:
        finish(made, trial, base, level(trial))
    Path(second.folder).mkdir(parents=True)
    (Path(second.folder) / "output.log").write_text(f"error: {tmp_path}/shards is\ngone\n")
    found = summarise(made, outcomes(made), "")
    assert [(m.arm, m.seed, m.begun, m.last_words) for m in found.missing] == [
        (first.arm.name, 0, False, ""),
        (second.arm.name, 0, True, "error: shards is | gone"),
    ]
    assert found.estimates["mIoU"][first.arm.name].seeds == 1
    (contrast, _) = found.contrasts
    assert {e.seeds for e in contrast.measures.values()} == {1}


def test_without_tallies_a_measure_is_drawn_over_seeds_in_all_arms(tmp_path: Path) -> None:
    made = opened(tmp_path)
    pretend(made, tmp_path / "base.yaml", level)
    (Path(trials_of(made)[5].folder) / TALLIES_FILE).unlink()
    found = summarise(made, outcomes(made), "")
    assert {m.resampled for m in found.measures} == {"seeds"}
    own = [t.values["mIoU"] for t in found.trials if t.arm == "I-JEPA"]
    interval = found.estimates["mIoU"]["I-JEPA"].interval
    assert interval == pytest.approx((min(own), max(own)))  # what three seeds can show


def test_damaged_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    made = opened(tmp_path, seeds=[0])
    pretend(made, tmp_path / "base.yaml", level)
    folder = Path(trials_of(made)[1].folder)
    tallied, evaluated = folder / TALLIES_FILE, folder / EVALUATION_FILE
    content = tallied.read_bytes()
    for broken in (content[:500], b""):
        tallied.write_bytes(broken)
        with pytest.raises(ConfigError, match=rf"{tallied}: .*delete it and {EVALUATION_FILE}"):
            summarise(made, outcomes(made), "")
    tallied.write_bytes(content)
    rows = json.loads(evaluated.read_text())
    for broken_rows in ({**rows, "trained": {}}, {k: v for k, v in rows.items() if k != "trained"}):
        evaluated.write_text(json.dumps(broken_rows))
        with pytest.raises(ConfigError, match=rf"{evaluated}: (.|\n)*delete it and run the study"):
            outcomes(made)


def test_encoders_of_other_sizes_have_random_twins_of_their_own(tmp_path: Path) -> None:
    deep = ["model.encoder_kwargs.depth=2"]
    made = opened(tmp_path, references={"deep": deep}, contrasts=[], seeds=[0])
    pretend(made, tmp_path / "base.yaml", lambda _: 0.5)
    found = summarise(made, outcomes(made), "")
    assert [arm.name for arm in found.arms if arm.role == "random weights"] == [
        "random weights, deep",
        "random weights, rate 0.0",
    ]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("run=/a/b/c/noise x=1", "run=noise x=1"),
        ('data.shards="/a/b/shards/"', 'data.shards="shards/"'),
        ("~/runs/x and runs/y", "x and runs/y"),
        ("s3://bucket/a/b https://host/a/b", "s3://bucket/a/b https://host/a/b"),
        ("1/2 of w/o a/b/c", "1/2 of w/o a/b/c"),
        ("[/a/b/c, /d/e/f]", "[c, f]"),
    ],
)
def test_absolute_paths_are_cut(text: str, cut: str) -> None:
    assert portable(text) == cut
    assert json.loads(json.dumps(portable({"a": [text, 1]}))) == {"a": [cut, 1]}
