"""Grids: which arms they span, that arms alike are one, their names, curves and selections."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import ConfigError, load
from tcjepa.ablate.grids import GRID, GridConfig, curves, expand
from tcjepa.ablate.study import StudyConfig, arms_of, remedies_of, training_config, trials_of
from tcjepa.config import TrainConfig, differences
from tcjepa.evaluation import UNTRAINED
from tcjepa.noise import CaptionNoise
from tests.tcjepa.ablate.worlds import TINY, study

KINDS = ["derangement", "drop_words", "truncate", "typos"]
X = "data.noise.rate"
RECOVERY = {"clean": "rate 0.0", "noisy": "rate 1.0"}


def noise_grid(kind: str, rates: list[float], counts: list[int]) -> dict[str, Any]:
    return {
        "name": kind,
        "set": [f"data.noise.kind={kind}"],
        "axes": {X: rates, "data.captions_per_image": counts},
    }


kinds_of = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)
rates_of = st.lists(st.sampled_from([0, 0.0, 0.1, 0.5, 1.0]), min_size=1, unique=True)
counts_of = st.lists(st.sampled_from([1, 2, 4]), min_size=1, unique=True)


@given(kinds_of, rates_of, counts_of)
def test_every_combination_is_an_arm_once(
    kinds: list[str], rates: list[float], counts: list[int]
) -> None:
    grids = [GridConfig(**noise_grid(kind, rates, counts)) for kind in kinds]
    arms = expand({}, grids, [])
    # What is trained, written out: the kind counts at rates above 0 only.
    trained = {
        (kind if rate else None, rate, count)
        for kind, rate, count in itertools.product(kinds, rates, counts)
    }
    assert len(arms) == len(trained) == len({arm.name for arm in arms})
    places = [place for arm in arms for place in arm.places]
    assert sorted(map(str, places)) == sorted(
        str(((GRID, kind), (X, rate), ("data.captions_per_image", count)))
        for kind, rate, count in itertools.product(kinds, rates, counts)
    )
    lines = curves(arms, X)
    assert {line.name for line in lines} == {
        f"{kind}, captions_per_image {count}" for kind in kinds for count in counts
    }
    assert all([x for x, _ in line.points] == sorted(rates) for line in lines)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (["data.noise.kind=typos", f"{X}=0.0"], ["data.noise.kind=truncate", f"{X}=0"], True),
        (["data.noise.kind=none", f"{X}=0.5"], ["data.noise.kind=truncate", f"{X}=0"], True),
        (["data.noise.kind=typos", f"{X}=0.1"], ["data.noise.kind=truncate", f"{X}=0.1"], False),
        (["model.text=null", "text.max_words=8"], ["model.text=null"], True),
        (["model.text=null", "masks.targets=2"], ["model.text=null"], False),
        (["text.max_words=8"], [], False),
        (["masks.targets=2", "masks.targets=4"], ["masks.targets=4"], True),
        (["a.b=1", "a=null"], ["a=null"], True),
        (["masks.target_scale=[0.1, 0.2]"], ["masks.target_scale=[0.1,0.2]"], True),
        (["train.objective=supervised", f"{X}=1.0"], ["train.objective=supervised"], True),
        (
            ["train.objective=contrastive", "model.text=null", "text.max_words=8"],
            ["train.objective=contrastive", "model.text=null"],
            False,
        ),
    ],
)
def test_arms_are_alike_if_what_is_read_is(one: list[str], other: list[str], alike: bool) -> None:
    grids = [GridConfig(name=name, axes={"x": {"1": keys}}) for name, keys in
             (("one", one), ("other", other))]  # fmt: skip
    names = [arm.name for arm in expand({}, grids, [])]
    assert names == (["x 1"] if alike else ["one, x 1", "other, x 1"])


def test_arms_that_are_one_have_configs_that_differ_in_nothing_read(tmp_path: Path) -> None:
    """The rule that joins arms, against the configs themselves."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    grids = [noise_grid(kind, [0.0, 1.0], [2]) for kind in KINDS]
    made = study(tmp_path, axes={}, set=[], grids=grids, references={})
    assert len(arms_of(made)[0].places) == len(KINDS)
    config = training_config(made, trials_of(made)[0], tmp_path / "base.yaml")
    for kind in KINDS:
        keys = [f"data.noise.kind={kind}", f"{X}=0.0", "data.captions_per_image=2"]
        other = load(TrainConfig, tmp_path / "base.yaml", keys)
        found = differences(config.model_dump(mode="json"), other.model_dump(mode="json"))
        assert all(line.startswith("data.noise.kind: ") for line in found)
        assert not CaptionNoise(other.data.noise, None).active  # type: ignore[arg-type]


def test_levels_of_an_axis_of_ones_own_set_several_keys(tmp_path: Path) -> None:
    levels = {"small": ["a.b=1", "c=2"], "large": []}
    made = study(tmp_path, axes={"size": levels, X: [0.0, 0.5]}, set=["z=1"])
    assert [(arm.name, arm.overrides) for arm in arms_of(made)[1:]] == [
        ("small, rate 0.0", ("a.b=1", "c=2", f"{X}=0.0")),
        ("small, rate 0.5", ("a.b=1", "c=2", f"{X}=0.5")),
        ("large, rate 0.0", (f"{X}=0.0",)),
        ("large, rate 0.5", (f"{X}=0.5",)),
    ]
    numbers = study(tmp_path, x="factor", axes={"factor": {"5": ["a=5"], "0.5": ["a=1"]}})
    assert [arm.values for arm in arms_of(numbers)[1:]] == [(("factor", 5),), (("factor", 0.5),)]
    (line,) = curves(arms_of(numbers), "factor")
    assert [x for x, _ in line.points] == [0.5, 5]


def test_only_narrows_without_renaming(tmp_path: Path) -> None:
    grids = [noise_grid(kind, [0.0, 0.5, 1.0], [1]) for kind in KINDS]
    whole = study(tmp_path, axes={}, grids=grids)
    some = study(tmp_path, axes={}, grids=grids, only={GRID: ["typos"], X: [0, 1.0]})
    names = [arm.name for arm in arms_of(some)]
    assert names == ["I-JEPA", "rate 0.0, captions_per_image 1",
                     "typos, rate 1.0, captions_per_image 1"]  # fmt: skip
    assert set(names) <= {arm.name for arm in arms_of(whole)}
    assert [line.name for line in curves(arms_of(some), X)] == ["typos, captions_per_image 1"]


def test_only_finds_a_level_by_the_name_the_study_gives_it(tmp_path: Path) -> None:
    axes = {"factor": {"5": ["a=5"], "0.5": ["a=1"], "none": []}}
    for spelled, number in (("5", 5), (5, 5), ("0.5", 0.5), (0.5, 0.5), ("none", "none")):
        made = study(tmp_path, x="factor", axes=axes, only={"factor": [spelled]})
        assert [arm.values for arm in arms_of(made) if arm.values] == [(("factor", number),)]
    with pytest.raises(ConfigError, match=r"only.factor: '50' is unknown; .*values: 5; 0.5; none"):
        study(tmp_path, x="factor", axes=axes, only={"factor": ["50"]})


def test_recovery_defaults_to_the_grid_of_the_noisy_arm(tmp_path: Path) -> None:
    levels = {"none": [], "filter": ["data.min_caption_quality=0.5"], "more": ["a=1"]}
    grids = [
        {"name": kind, "set": [f"data.shards={kind}"], "axes": {"remedy": levels}}
        for kind in ("swapped", "invented")
    ]
    entry = {"clean": "clean", "noisy": "swapped, none"}
    options = {"axes": {}, "x": "remedy", "grids": grids, "references": {"clean": []}}
    made = study(
        tmp_path,
        **options,
        recovery=[entry, {**entry, "name": "other", "remedies": ["invented, more"]}],
    )
    found = [[arm.name for arm in remedies_of(made, one)] for one in made.recovery]
    assert found == [["swapped, filter", "swapped, more"], ["invented, more"]]
    # An arm's own shards win over the study's.
    named = [[key for key in t.overrides if "shards" in key][-1] for t in trials_of(made)]
    assert named[1:] == ["data.shards=swapped"] * 3 + ["data.shards=invented"] * 3
    assert named[0].endswith('/shards"')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {}}, "axes, grids: give one of them"),
        ({"grids": [{"axes": {X: [0.0]}}]}, "axes, grids: give one of them"),
        ({"axes": {}, "grids": [{"axes": {"a": [1]}}]}, r"x: .* is no axis of grids\[0\]"),
        ({"axes": {X: {}}}, "has no values"),
        ({"axes": {GRID: [1], X: [0.0]}}, "name is taken"),
        ({"contrasts": [["I-JEPA", "rate 0.1"]]}, r"contrasts\[0\]: 'rate 0.1' is unknown; "
                                                  r"did you mean 'rate 0.0'"),
        ({"recovery": [{"clean": "I-JPA", "noisy": "rate 1.0"}]}, "did you mean 'I-JEPA'"),
        ({"only": {"data.noise.rat": [0.0]}}, "only: .* did you mean 'data.noise.rate'"),
        ({"only": {X: [0.7]}}, "only.data.noise.rate: 0.7 is unknown; .*0.0; 1.0"),
        ({"references": {"Rate 0.0": []}}, "two arms would share a folder"),
        ({"references": {UNTRAINED: []}}, "'random weights': .*use another name"),
        ({"references": {f"{UNTRAINED}, deep": []}}, "'random weights, deep': .*another name"),
        ({"references": {101 * "é": []}}, "é'… would have a folder of 202 bytes .* at most 200"),
        ({"recovery": [RECOVERY, RECOVERY]}, r"recovery\[1\]: 'rate 1.0' and recovery\[0\] would"),
        ({"recovery": [{**RECOVERY, "name": name} for name in ("40% won", "a", "40 Won")]},
         r"recovery\[2\]: '40 Won' and recovery\[0\] would share a figure"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, **change)


def test_names_are_equal_however_they_were_read(tmp_path: Path) -> None:
    """One level's name and a reference's are the same object after YAML, or are not: no matter."""
    text = """
run: x
base: y
x: captions
axes: {captions: {all: [], none: [data.captions_per_image=1]}}
references: {none: [model.text=null]}
"""
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match="two arms would share a folder: 'none' and 'none'"):
        load(StudyConfig, tmp_path / "study.yaml")


def test_a_folder_has_room_for_a_long_name_and_random_weights_only_begin_no_name(
    tmp_path: Path,
) -> None:
    names = [200 * "x", "random weightsless", "random weights of mine"]
    made = study(tmp_path, references={name: [] for name in names})
    assert [arm.name for arm in arms_of(made)[:3]] == names


def test_constants_are_for_interpolation(tmp_path: Path) -> None:
    text = """
run: x
base: y
x: data.noise.rate
constants: {noisy: there, epochs: 3}
set: ["data.shards=${constants.noisy}", "train.epochs=${constants.epochs}"]
axes: {data.noise.rate: [0.0]}
"""
    (tmp_path / "study.yaml").write_text(text)
    made = load(StudyConfig, tmp_path / "study.yaml", ["constants.noisy=elsewhere"])
    assert made.set == ["data.shards=elsewhere", "train.epochs=3"]
