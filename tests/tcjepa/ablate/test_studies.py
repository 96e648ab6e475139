"""The studies that come with the package: every arm of either size is a config that can run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.settings import ConfigError
from tcjepa.ablate.reduced import STUDIES, names, open_study
from tcjepa.ablate.study import arms_of, curves_of, remedies_of, training_config, trials_of
from tcjepa.cli import config_path
from tcjepa.masks import token_counts
from tcjepa.model.encoder import encoder_shape

#: The studies that the project promises.
PROMISED = {
    "noise", "remedies", "filtering", "conditioning", "fusion", "captions", "loss_weights",
    "mask_scale", "captioners", "scaling", "baselines", "collapse", "content", "context", "length",
}  # fmt: skip


def test_all_studies_are_there() -> None:
    assert set(names()) >= PROMISED


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("name", names())
def test_every_arm_is_a_config_whose_masks_fit(name: str, reduced: bool) -> None:
    study = open_study(name, reduced=reduced)
    arms = arms_of(study)
    base = config_path(study.base)
    first = [trial for trial in trials_of(study) if trial.seed == study.seeds[0]]
    assert len({trial.folder for trial in first}) == len(first) == len(arms)
    for trial in first:
        config = training_config(study, trial, base)
        assert config.evaluate.labels and config.train.evaluate_after
        if config.train.objective == "jepa":
            grid = encoder_shape(config.model.encoder, config.model.encoder_kwargs).grid
            token_counts(config.masks, grid)
    known = {arm.name for arm in arms}
    assert {arm for _, arm in study.named_arms()} <= known
    for entry in study.recovery:
        assert len(remedies_of(study, entry)) > 1
    assert all(len(curve.points) > 1 for curve in curves_of(study))


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_studies_share_one_base_and_say_what_they_ask(name: str) -> None:
    text = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    study = open_study(name)
    assert (study.base, study.reduced.base) == ("scenes_small", "scenes_mini")
    assert len(study.seeds) >= 3 and study.asks.endswith((".", "?"))
    assert text["run"] == f"runs/studies/{name}"
    assert study.reduced.run == f"runs/ablation/{name}"
    assert len(trials_of(open_study(name, reduced=True))) <= 24  # a minute or three each


def test_the_noise_study_runs_what_kinds_share_once() -> None:
    study = open_study("noise")
    kinds, rates, counts = 9, 6, 3
    assert len(arms_of(study)) == 1 + counts + kinds * (rates - 1) * counts
    curves = curves_of(study)
    assert len(curves) == kinds * counts
    assert all([x for x, _ in curve.points] == [0, 0.1, 0.2, 0.4, 0.6, 1] for curve in curves)
    clean = {curve.points[0][1].name for curve in curves if curve.name.endswith("image 4")}
    assert clean == {"rate 0.0, captions_per_image 4"}


def test_a_reduced_study_keeps_names_and_takes_overrides() -> None:
    whole, study = open_study("noise"), open_study("noise", ["seeds=[7]", "run=x"], reduced=True)
    assert {arm.name for arm in arms_of(study)} < {arm.name for arm in arms_of(whole)}
    assert (study.base, study.seeds, study.run) == ("scenes_mini", [7], "x")
    assert study.contrasts and set(study.contrasts) < set(whole.contrasts)


def test_a_reduced_study_can_be_reduced_further() -> None:
    given = ["reduced.only.remedy=[none,quality threshold]", "reduced.references=[clean]"]
    study = open_study("remedies", given, reduced=True)
    assert [arm.name for arm in arms_of(study)] == [
        "clean", "derangement, none", "derangement, quality threshold"
    ]  # fmt: skip


@pytest.mark.parametrize(("reduced", "rates", "counts"), [(False, 5, 3), (True, 2, 1)])
def test_an_axis_with_a_dot_is_narrowed_in_brackets(reduced: bool, rates: int, counts: int) -> None:
    study = open_study("noise", ["only[data.noise.kind]=[typos]"], reduced=reduced)
    names = [arm.name for arm in arms_of(study)]
    assert len(names) == 1 + counts * (1 + rates)
    assert sum(name.startswith("kind typos, ") for name in names) == counts * rates


def test_overrides_of_every_arm_hold_over_those_of_the_reduced_size(tmp_path: Path) -> None:
    reduced = {"set": ["train.warmup_steps=3", "train.lr=0.1"], "references": []}
    content = {"run": "x", "base": "scenes_mini", "x": "train.lr", "axes": {"train.lr": [0.1]}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**content, "set": ["train.steps=9"], "reduced": reduced}))
    assert open_study(str(path), reduced=True).set == ["train.steps=9", *reduced["set"]]
    given = open_study(str(path), ["set=[train.warmup_steps=7]"], reduced=True)
    (trial, *_) = trials_of(given)
    assert training_config(given, trial, config_path(given.base)).train.warmup_steps == 7
    only = open_study(str(path), ["reduced.set=[train.warmup_steps=7]"], reduced=True)
    assert only.set == ["train.steps=9", "train.warmup_steps=7"]


def test_an_unknown_study_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no study 'nois'; those here are .*noise"):
        open_study("nois")


def test_dry_run_prints_runs_and_cost(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcjepa", "ablate", "mask_scale", "--reduced", "--dry-run"]
    done = subprocess.run(
        [*command, f"shards={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and lines[-1].startswith("6 runs of 6 arms; training takes ")
    assert "floating-point operations in 6 kinds of run" in lines[-1]
    assert f"no step was timed: {tmp_path} is not there yet" in done.stderr
