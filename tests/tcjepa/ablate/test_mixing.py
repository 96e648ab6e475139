"""Runs of other code, data or configs, or evaluated otherwise, are no results of a study."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.settings import ConfigError
from tcjepa.ablate import provenance
from tcjepa.ablate.report import write_report
from tcjepa.ablate.results import outcomes
from tcjepa.ablate.runner import run_trials
from tcjepa.ablate.study import training_config, trials_of
from tcjepa.ablate.trial import is_finished
from tests.tcjepa.ablate.pretended import pretend
from tests.tcjepa.ablate.worlds import ONE_ARM, command, opened, study
from tests.tcjepa.shards import write_shards


@pytest.fixture(scope="module")
def finished(own_world: Path) -> Path:
    """A world whose study was run as an array of two jobs."""
    jobs = [
        subprocess.run(
            [*command(own_world), "--part", f"{number}/2", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        for number, options in ((1, ()), (2, ("--no-estimate",)))
    ]
    assert [job.returncode for job in jobs] == [0, 0], [job.stderr for job in jobs]
    assert "2 runs to train" in jobs[0].stderr and "to train" not in jobs[1].stderr
    assert not (own_world / "study" / "report.md").exists()
    return own_world


def test_an_array_of_two_jobs_gives_the_whole_study(finished: Path) -> None:
    made = opened(finished)
    assert all(is_finished(trial) for trial in trials_of(made))
    text = write_report(made, outcomes(made))
    assert "3 of 3 runs finished" in text
    assert f"- code {provenance.code_fingerprint()}" in text


def test_runs_of_other_code_are_not_mixed_unless_asked_to(finished: Path) -> None:
    made = opened(finished)
    path = Path(trials_of(made)[1].folder) / provenance.PROVENANCE
    written = path.read_text()
    path.write_text(written.replace(provenance.code_fingerprint(), "0" * 16))
    with pytest.raises(ConfigError, match=r"2 runs: code (.|\n)*1 runs: code 0000") as error:
        write_report(made, outcomes(made))
    assert "mixed=true" in str(error.value)
    mixed = made.model_copy(update={"mixed": True})
    assert "- code 0000000000000000" in write_report(mixed, outcomes(mixed))
    path.write_text(written)


def test_results_of_other_evaluations_are_no_results_of_the_study(finished: Path) -> None:
    made = opened(finished)
    path = Path(trials_of(made)[1].folder) / "evaluation.json"
    written = path.read_text()
    content = json.loads(written)
    path.write_text(json.dumps({**content, "step": content["step"] - 1}))
    assert len(outcomes(made)) == 2  # evaluated before the end: not finished
    path.write_text(json.dumps({**content, "settings": {**content["settings"], "batch": 7}}))
    with pytest.raises(ConfigError, match=r"other evaluate\.\* settings"):
        outcomes(made)
    path.write_text(written)


def test_finished_runs_are_no_results_of_another_config_or_of_other_data(finished: Path) -> None:
    asked = [*command(finished), "--report", "set=[train.lr=0.5]"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "train.lr" in done.stderr, done.stderr

    made = opened(finished)
    other = finished / "other"
    write_shards(other, 36, split=lambda i: "train" if i < 24 else "test")
    moved = made.model_copy(update={"shards": str(other)})
    with pytest.raises(ConfigError, match="ran on other data"):
        run_trials(moved, finished / "base.yaml", print)
    same = made.model_copy(update={"shards": f"{finished}/./shards"})
    assert run_trials(same, finished / "base.yaml", print) == []


def test_finished_runs_without_checkpoints_are_no_results_of_another_config(world: Path) -> None:
    made, other = opened(world), opened(world, set=["train.lr=0.5"])
    pretend(made, world / "base.yaml", lambda _: 0.5)
    path = Path(trials_of(made)[0].folder) / "trial.yaml"
    written = path.read_text()
    with pytest.raises(ConfigError, match=r"holds a trial of another config \(train\.lr"):
        run_trials(other, world / "base.yaml", print)
    assert path.read_text() == written
    asked = [*command(world), "--report", "set=[train.lr=0.5]"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "train.lr" in done.stderr, done.stderr
    path.unlink()
    with pytest.raises(ConfigError, match=r"trial\.yaml does not exist"):
        run_trials(made, world / "base.yaml", print)


def test_results_that_were_evaluated_again_are_not_reported_unless_asked_to(
    finished: Path,
) -> None:
    """`python -m tcjepa evaluate TRIAL` says nothing of its code."""
    made = opened(finished)
    trials = trials_of(made)
    folder = Path(trials[1].folder)
    result, notes = folder / "evaluation.json", folder / provenance.PROVENANCE
    evaluated, noted = result.read_text(), notes.read_text()
    assert provenance.check_same(made, trials)
    result.write_text(evaluated + "\n")
    with pytest.raises(ConfigError, match=rf"not the evaluations .*\n  {result}\n.*mixed=true"):
        write_report(made, outcomes(made))
    result.write_text(evaluated)
    tallies = folder / "tallies.npz"  # a kill may leave the old evaluation beside new ones
    kept = tallies.read_bytes()
    tallies.write_bytes(kept + b"other")
    with pytest.raises(ConfigError, match="not the evaluations"):
        provenance.check_same(made, trials)
    tallies.write_bytes(kept)
    assert provenance.check_same(made, trials)
    result.write_text(evaluated + "\n")
    mixed = made.model_copy(update={"mixed": True})
    lines = provenance.check_same(mixed, trials)
    assert [line.endswith("evaluated again since (1 runs)") for line in lines] == [False, True]
    unsealed = json.loads(noted)
    del unsealed["evaluation"]  # as runs before there was a seal
    notes.write_text(json.dumps(unsealed))
    assert provenance.check_same(made, trials)
    result.write_text(evaluated)
    notes.write_text(noted)


def test_a_run_whose_study_was_killed_before_it_could_note_it_is_noted_by_the_next(
    finished: Path,
) -> None:
    made = opened(finished)
    notes = Path(trials_of(made)[1].folder) / provenance.PROVENANCE
    noted = json.loads(notes.read_text())
    notes.write_text(
        json.dumps({key: value for key, value in noted.items() if key != "evaluation"})
    )
    assert run_trials(made, finished / "base.yaml", print) == []
    assert json.loads(notes.read_text()) == noted


def test_runs_of_other_versions_of_torch_are_not_mixed(finished: Path) -> None:
    made = opened(finished)
    path = Path(trials_of(made)[1].folder) / provenance.PROVENANCE
    written = path.read_text()
    path.write_text(json.dumps({**json.loads(written), "torch": "1.0"}))
    with pytest.raises(ConfigError, match=r"different code, libraries or data:(.|\n)*torch 1\.0"):
        write_report(made, outcomes(made))
    path.write_text(written)


def test_an_unfinished_run_of_other_code_is_not_continued(world: Path) -> None:
    made = opened(world)
    trial = trials_of(made)[0]
    folder = Path(trial.folder)
    folder.mkdir(parents=True)
    (folder / provenance.PROVENANCE).write_text(json.dumps({"code": "other", "data": "other"}))
    (folder / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="began with other code and data"):
        run_trials(made, world / "base.yaml", print)


def _image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (level, level, level)).save(path)


def _images(root: Path) -> list[str]:
    """Write an image folder whose test images are behind a link; return what evaluates on it."""
    for part, place in (("train", root / "images/train"), ("test", root / "elsewhere")):
        for name in ("cat", "dog"):
            _image(place / name / f"{part}.png", 100)
    (root / "images/test").symlink_to(root / "elsewhere")
    (root / "images/notes.txt").write_text("no image")
    return [f"evaluate.folder={root}/images"]


def _tars(root: Path) -> list[str]:
    for part in ("train", "test"):
        _image(root / "1.png", 100)
        with tarfile.open(root / f"{part}-0.tar", "w") as tar:
            tar.add(root / "1.png", "1.png")
    return [f"evaluate.{part}_tars={root}/{part}-*.tar" for part in ("train", "test")]


@pytest.mark.parametrize(
    ("make", "changed"), [(_images, "elsewhere/cat/test.png"), (_tars, "test-0.tar")]
)
def test_runs_on_other_test_images_are_refused(
    make: Callable[[Path], list[str]], changed: str, world: Path
) -> None:
    made = study(world, **{**ONE_ARM, "set": [*make(world), "evaluate.labels=[]"]})
    (trial,) = trials_of(made)
    config = training_config(made, trial, world / "base.yaml")
    pretend(made, world / "base.yaml", lambda _: 0.5)
    path = Path(trial.folder) / provenance.PROVENANCE
    path.write_text(json.dumps(provenance.provenance(config)))
    (world / "images").mkdir(exist_ok=True)
    (world / "images/notes.txt").write_text("no image, changed")
    assert run_trials(made, world / "base.yaml", print) == []
    before = (world / changed).stat()
    os.utime(world / changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ConfigError, match="ran on other data"):
        run_trials(made, world / "base.yaml", print)


def test_arms_that_name_other_images_to_test_on_are_no_mix(world: Path) -> None:
    levels = {name: [f"evaluate.shards={name}"] for name in ("one", "other")}
    made = study(world, axes={"tested": levels}, x="tested", references={}, seeds=[0, 1],
                 set=["evaluate.shards=base"])  # fmt: skip
    pretend(made, world / "base.yaml", lambda _: 0.5)
    for trial in trials_of(made):
        path = Path(trial.folder) / provenance.PROVENANCE
        path.write_text(json.dumps({**json.loads(path.read_text()), "data": trial.arm.name}))
    assert len(provenance.check_same(made, trials_of(made))) == 2
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "changed"}))
    with pytest.raises(ConfigError, match="different code, libraries or data"):
        provenance.check_same(made, trials_of(made))


def test_code_that_changes_while_a_study_runs_ends_it(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is a process that imports the code as it then is."""
    made = study(world, **ONE_ARM)
    trial = trials_of(made)[0]
    found = {"code": provenance.code_fingerprint(), "data": "d"}
    Path(trial.folder).mkdir(parents=True)
    provenance.write(trial, found)
    monkeypatch.setattr(provenance, "code_fingerprint", lambda: "0" * 16)
    with pytest.raises(
        ConfigError, match=r"the code changed while the study ran \(from .* to 0000"
    ):
        provenance.write(trial, found)
    assert json.loads((Path(trial.folder) / provenance.PROVENANCE).read_text()) == found


def test_the_commit_is_that_of_the_checkout_that_tracks_the_code(tmp_path: Path) -> None:
    """An environment may lie in a checkout of something else, which says nothing of our code."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file, other = tmp_path / "code.py", tmp_path / "installed.py"
    for path in (file, other):
        path.write_text("1\n")
    assert provenance.commit_of(file) is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", file.name], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    named = provenance.commit_of(file)
    assert named and head.stdout.startswith(named)
    assert provenance.commit_of(other) is None
    file.write_text("2\n")
    assert provenance.commit_of(file) == f"{named}-dirty"
