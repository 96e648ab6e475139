"""Several runners share a study's directory: a run has one process, the others wait for it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.settings import ConfigError
from tcjepa.ablate import provenance, runner
from tcjepa.ablate.dask_workers import run_here
from tcjepa.ablate.runner import Processes, run_trials
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.ablate.trial import TrialBusyError, is_finished, own_config, start, write_config
from tests.tcjepa.ablate.pretended import finish
from tests.tcjepa.ablate.worlds import ONE_ARM, opened, study


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make runs stand-ins that take some seconds and finish, and note the config they had."""
    python = sys.executable
    monkeypatch.setattr(runner, "_BUSY_SECONDS", 0.1)

    def take(seconds: float) -> None:
        script = tmp_path / f"takes {seconds}"
        script.write_text(f"""#!{python} -S
import json, pathlib, sys, time
config = pathlib.Path(sys.argv[4])
with (config.parent / "ran").open("a") as ran:
    ran.write(config.read_text() + "...\\n")
time.sleep({seconds})
(config.parent / "evaluation.json").write_text(json.dumps({{"step": 6}}))
(config.parent / "status.json").write_text(json.dumps({{"steps": 6}}))
""")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return take


def begun_by_another(
    made: StudyConfig, base: Path, made_by: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Run the first trial as another runner of the study does."""
    trial = trials_of(made)[0]

    def before() -> bool:
        write_config(trial, training_config(made, trial, base))
        provenance.write(trial, {"code": provenance.code_fingerprint(), **made_by})
        return True

    process = start(trial, 1, before)
    assert process is not None
    return process


def test_a_run_of_another_process_is_waited_for(
    world: Path, quick: Callable[[float], None]
) -> None:
    made, base = opened(world), world / "base.yaml"
    trial, *rest = trials_of(made)
    quick(3)
    process = begun_by_another(made, base, {"by": "another"})
    quick(0)
    said: list[str] = []
    assert run_trials(made, base, said.append) == []
    assert said == [f"I-JEPA, seed 0 is waited for: {trial.folder} is being run by another process"]
    assert process.wait() == 0
    folder = Path(trial.folder)
    assert (folder / "ran").read_text().count("...") == 1  # and not evaluated again
    assert json.loads((folder / provenance.PROVENANCE).read_text())["by"] == "another"
    # It goes on with other runs meanwhile.
    times = [(Path(other.folder) / "status.json").stat().st_mtime_ns for other in (trial, *rest)]
    assert times[0] == max(times)


def test_a_run_of_another_process_that_ends_unfinished_is_run(
    world: Path, quick: Callable[[float], None]
) -> None:
    made, base = study(world, **ONE_ARM), world / "base.yaml"
    (trial,) = trials_of(made)
    quick(600)
    process = begun_by_another(made, base, {})
    quick(0)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        process.terminate()

    assert run_trials(made, base, say) == []
    process.wait()
    assert len(said) == 1 and is_finished(trial)


def test_a_run_of_another_process_with_another_config_is_not_taken_over(
    world: Path, quick: Callable[[float], None]
) -> None:
    made, base = study(world, **ONE_ARM), world / "base.yaml"
    (trial,) = trials_of(made)
    quick(1)
    process = begun_by_another(study(world, **ONE_ARM, set=["train.lr=0.5"]), base, {})
    with pytest.raises(ConfigError, match=r"another config .*train\.lr"):
        run_trials(made, base, print)
    assert process.wait() == 0
    assert own_config(trial).train.lr == 0.5
    ran = (Path(trial.folder) / "ran").read_text()
    assert ran == (Path(trial.folder) / "trial.yaml").read_text() + "...\n"


def test_configs_are_written_when_their_runs_start(
    world: Path, quick: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then another study may still begin them, and finish them."""
    made, base = opened(world), world / "base.yaml"
    written: list[set[str]] = []

    class Place(Processes):
        def start(self, trial: Trial, before: Callable[[], bool]) -> None:
            found = (world / "study" / "trials").rglob("trial.yaml")
            written.append({str(path.parent) for path in found})
            if trial == trials_of(made)[1]:  # finished by another, since the list was made
                finish(made, trial, base, 0.5)
                (Path(trial.folder) / provenance.PROVENANCE).write_text('{"code": "theirs"}')
            super().start(trial, before)

    monkeypatch.setattr(runner, "_place", Place)
    quick(0)
    assert run_trials(made, base, print) == []
    first, second, third = (trial.folder for trial in trials_of(made))
    assert written == [set(), {first}, {first, second}]
    assert not (Path(second) / "ran").exists() and (Path(third) / "ran").exists()
    assert (Path(second) / provenance.PROVENANCE).read_text() == '{"code": "theirs"}'


def test_a_run_has_one_process_at_a_time(world: Path) -> None:
    made = study(world, **ONE_ARM)
    trial = trials_of(made)[0]
    folder = Path(trial.folder)
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
import fcntl, time
lock = open({str(folder / "trial.lock")!r}, "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(TrialBusyError, match="another process"):
            start(trial, 1, lambda: pytest.fail("the folder was touched"))
        place = Processes(made)
        place.start(trial, lambda: pytest.fail("the folder was touched"))
        ((_, problem),) = place.ended()
        # A worker's answer travels to the study.
        refused = pickle.loads(pickle.dumps(run_here(trial, 1, lambda: pytest.fail("touched"))))
        for error in (problem, refused):
            assert isinstance(error, TrialBusyError)
            assert str(error) == f"{folder} is being run by another process"
    finally:
        holder.kill()
        holder.wait()
    assert run_trials(made, world / "base.yaml", print) == []
