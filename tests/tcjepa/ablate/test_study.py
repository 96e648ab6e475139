"""Studies: which runs they consist of, a real one killed and resumed, and its report."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeline.settings import ConfigError
from tcjepa.ablate.report import write_report
from tcjepa.ablate.results import Outcome, outcomes
from tcjepa.ablate.runner import run_trials
from tcjepa.ablate.schema import RESULT_FILE, read
from tcjepa.ablate.study import StudyConfig, arms_of, trials_of
from tests.tcjepa.ablate.worlds import TINY, command, study


def test_arms_are_every_combination_and_the_references(tmp_path: Path) -> None:
    made = study(tmp_path, axes={"data.noise.rate": [0.0, 0.5], "data.captions_per_image": [1, 2]})
    names = [arm.name for arm in arms_of(made)]
    assert names == [
        "I-JEPA",
        "rate 0.0, captions_per_image 1",
        "rate 0.0, captions_per_image 2",
        "rate 0.5, captions_per_image 1",
        "rate 0.5, captions_per_image 2",
    ]


def test_trials_have_their_own_folders_and_go_seed_by_seed(tmp_path: Path) -> None:
    trials = trials_of(study(tmp_path, seeds=[3, 4]))
    assert len({trial.folder for trial in trials}) == len(trials) == 6
    assert [trial.seed for trial in trials] == [3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": "data.noise.kind"}, "is no axis"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"axes": {"data.noise.rate": []}}, "has no values"),
    ],
)
def test_impossible_studies_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, **change)


def test_wrong_key_names_the_arm_before_any_trial_runs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    made = study(tmp_path, references={"broken": ["model.txet=null"]})
    with pytest.raises(ConfigError, match=r"arm 'broken'(.|\n)*did you mean model.text"):
        run_trials(made, tmp_path / "base.yaml", print)
    assert not (tmp_path / "study").exists()


def test_killed_study_goes_on_and_reports(world: Path) -> None:
    process = subprocess.Popen(command(world), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first = world / "study" / "trials" / "i-jepa" / "seed-0" / "evaluation.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert first.exists(), stderr.decode()
    written = first.stat().st_mtime_ns

    done = subprocess.run(command(world), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == written  # a finished trial is not run again
    found = read(world / "study" / RESULT_FILE)
    arms = ["I-JEPA", "rate 0.0", "rate 1.0"]
    assert [trial.arm for trial in found.trials] == [*arms, "random weights"]
    assert found.command == "python -m tcjepa ablate study.yaml"
    assert found.hardware.endswith("(3 runs)") and found.minutes is not None
    assert {m.name: m.images for m in found.measures}["linear shape"] == 12
    for arm in arms:  # one seed: images alone
        estimate = found.estimates["linear shape"][arm]
        assert estimate.interval is not None and estimate.student is None
    assert str(world) not in (world / "study" / RESULT_FILE).read_text()
    report = (world / "study" / "report.md").read_text()
    for arm in ("random weights", "I-JEPA", "rate 0.0", "rate 1.0"):
        assert f"| {arm} | 1 |" in report
    assert Image.open(world / "study" / "curves.png").width > 300

    # The same folder with another config is refused, not mixed.
    other = subprocess.run(
        [*command(world), "set=[data.noise.kind=drop_words]"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 2
    assert "trial of another config" in other.stderr


def outcome(made: StudyConfig, arm: int, seed: int, value: float) -> Outcome:
    trial = next(t for t in trials_of(made) if t.seed == seed and t.arm == arms_of(made)[arm])
    return Outcome(trial, {"linear shape": value, "text gain": 0.5}, {"linear shape": 12.0})


def test_report_says_what_is_missing_and_what_the_slope_is(tmp_path: Path) -> None:
    made = study(tmp_path, seeds=[0, 1])
    (tmp_path / "study").mkdir()
    found = [outcome(made, 1, 0, 40), outcome(made, 1, 1, 42), outcome(made, 2, 0, 30)]
    text = write_report(made, found)
    assert "3 of 6 runs finished" in text
    assert "3 runs are missing" in text
    assert "| rate 0.0 | 2 | 41.0 [40.0, 42.0] ±12.7 | 0.500 [0.500, 0.500] ±0.000 |" in text
    assert "| I-JEPA | 0 | not begun | — |" in text
    assert "| curve | seeds | linear shape [points] | text gain |" in text
    assert "| study | 1 | −10.0 |" in text  # of the one seed that has both ends
    assert outcomes(made) == []
