"""Alarms: made-up runs that go wrong in one way each, and real ones that collapse or go deaf."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.train.log import read
from tcjepa.watch.alarms import Finding, Watch
from tcjepa.watch.rules import RECENT, RULES, meaningless
from tests.tcjepa.train.runs import finish, start, write_config

#: What a healthy run of the demo reads, step after step.
HEALTHY = {
    "loss": 4.0, "grad_norm": 2.5, "target_std": 0.55, "positive_share": 0.01,
    "attention_entropy": 0.4, "images_per_s": 100.0, "data_wait": 0.01, "lr": 1e-3,
    "monitor/encoder_rank": 5.0, "monitor/target_encoder_rank": 4.5, "monitor/encoder_std": 0.55,
    "monitor/text_gain_share": 0.2, "probe/knn_colour": 0.6, "unreadable": 0.0,
}  # fmt: skip


def follow(watch: Watch, key: str, values: list[float], first: int = 0) -> list[Finding]:
    """Return what is said about a run that is healthy but for the values of one reading."""
    found = []
    for number, value in enumerate(values):
        found += watch.check({"step": first + number, **HEALTHY, key: value})
    return found


def test_a_healthy_run_raises_nothing() -> None:
    assert follow(Watch(10), "loss", [4.0] * 500) == []


@pytest.mark.parametrize(
    ("name", "key", "good", "bad"),
    [
        ("collapse", "monitor/encoder_rank", 40.0, 9.0),
        ("collapse", "monitor/target_encoder_rank", 40.0, 9.0),
        ("collapse", "monitor/encoder_std", 0.5, 0.17),
        ("collapse", "target_std", 0.5, 0.17),
        ("text", "monitor/text_gain_share", 0.2, 0.0),
        ("text", "positive_share", 0.1, 0.0),
        ("text", "attention_entropy", 0.4, 0.002),
        ("spike", "loss", 4.0, 7.0),
        ("gradient", "grad_norm", 2.0, 30.0),
        ("data", "data_wait", 0.01, 0.2),
        ("data", "unreadable", 0.0, 0.002),
        ("speed", "images_per_s", 100.0, 40.0),
        ("probe", "probe/linear_shape", 0.6, 0.4),
    ],
)
def test_each_fault_is_said_once_per_spell_with_what_to_do(
    name: str, key: str, good: float, bad: float
) -> None:
    rule = next(r for r in RULES if r.key.rstrip("*") in key and key.startswith(r.key.rstrip("*")))
    spell = [bad] * max(rule.patience, 1)
    before = [good] * (RECENT + 10)
    watch = Watch(0)
    found = follow(watch, key, [*before, *spell[:-1]])
    assert found == []
    found = follow(watch, key, [bad], 500)
    assert [each.name for each in found] == [name]
    assert found[0].is_note == rule.is_note
    for part in ("step 500: ", key, rule.says, rule.advice):
        assert part in str(found[0])
    assert follow(watch, key, [bad] * 3, 501) == []
    again = follow(watch, key, [*before, *spell], 600)
    assert [each.name for each in again] == [name]


@given(st.integers(0, 119), st.sampled_from(["grad_norm", "data_wait", "monitor/encoder_rank"]))
def test_a_restart_anywhere_changes_nothing_that_is_said(cut: int, key: str) -> None:
    values = [*[HEALTHY[key]] * 105, *[HEALTHY[key] * (0.01 if "rank" in key else 50)] * 15]
    records = [{"step": n, **HEALTHY, key: value} for n, value in enumerate(values)]
    whole = Watch(0, steps=1000)
    said = [str(finding) for record in records for finding in whole.check(record)]
    resumed = Watch(0, records[:cut], steps=1000)
    after = [str(finding) for record in records[cut:] for finding in resumed.check(record)]
    assert len(said) == 1
    assert after == [line for line in said if int(line.split()[1][:-1]) >= cut]


def test_a_rank_below_that_of_the_initial_weights_is_said() -> None:
    """However slowly it falls, and whatever it was on the way."""
    key = "monitor/target_encoder_rank"
    assert follow(Watch(100), key, [8.0, *[5.9] * 100]) == []  # the warm-up may take from it
    found = follow(Watch(100), key, [8.0, *[16.0] * 100, *[5.9] * 5])
    assert [(each.name, each.step) for each in found] == [("collapse", 102)]
    assert "below 0.75 of 8: the target's features use fewer dimensions" in found[0].text


def test_text_alarms_wait_for_the_warmup() -> None:
    watch = Watch(warmup_steps=100)
    assert follow(watch, "positive_share", [0.0] * 149) == []
    assert [each.step for each in follow(watch, "positive_share", [0.0], 149)] == [149]


def test_readings_that_mean_nothing_for_a_model_are_ignored() -> None:
    assert follow(Watch(0, ignored=["positive_share"]), "positive_share", [0.0] * 200) == []


def test_a_run_without_words_on_purpose_is_not_told_that_its_text_path_is_dead() -> None:
    text = {"model": {"text": {"sparsity": "rectified"}}}
    assert meaningless({**text, "data": {"caption_sources": None}}) == ()
    ignored = meaningless({**text, "data": {"caption_sources": []}})
    assert follow(Watch(0, ignored=ignored), "monitor/text_gain_share", [0.0] * 9) == []


def test_a_loss_that_stands_still_is_a_note_and_a_falling_or_annealed_one_is_not() -> None:
    still = follow(Watch(10, steps=1000), "loss", [4.0] * 700)
    assert [(each.name, each.is_note) for each in still] == [("plateau", True)]
    falling = [4.0 * 0.999**n for n in range(1000)]
    assert follow(Watch(10, steps=1000), "loss", falling) == []
    watch = Watch(10, steps=1000)
    for step in range(1000):
        record = {"step": step, **HEALTHY, "lr": 1e-3 if step < 100 else 1e-5}
        assert watch.check(record) == []


def test_values_that_are_not_finite_or_missing_are_skipped() -> None:
    watch = Watch(0)
    assert watch.check({"step": 0, "loss": "nan", "grad_norm": None}) == []
    assert watch.check({"loss": 3.0}) == []


#: The encoder's weights shrink to nothing: every image gets the features of its positions alone.
COLLAPSING = ("train.weight_decay=20", "train.final_weight_decay=20", "train.lr=0.05")
DEAF = ("data.noise.kind=derangement", "data.noise.rate=1.0", "train.lr=3e-3")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(COLLAPSING, "all images get nearly the same features"), (DEAF, "other images' captions")],
    ids=["collapse", "deaf"],
)
def test_real_runs_that_fail_say_so(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    config = write_config(tmp_path, steps=40, monitor_every=4)
    code, printed = finish(start("pretrain", config, *overrides))
    assert code == 0, printed
    warned = [line for line in printed.splitlines() if line.startswith("warning: step")]
    assert any(said in line for line in warned), printed
    watch = Watch(2)
    replayed = [f for record in read(tmp_path / "run") for f in watch.check(record)]
    assert {f"warning: {finding}" for finding in replayed if not finding.is_note} == set(warned)
