"""How a study's runs are run: in shares, on Dask workers, again after a failure, never mixed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import gpus
from pipeline.settings import ConfigError, load
from tcjepa.ablate import provenance, runner
from tcjepa.ablate.dask_workers import run_here
from tcjepa.ablate.report import write_report
from tcjepa.ablate.results import outcomes
from tcjepa.ablate.runner import Processes, chosen, run_trials
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.ablate.trial import TrialBusyError, is_finished, own_config, start, write_config
from tests.tcjepa.ablate.pretended import finish, pretend
from tests.tcjepa.ablate.test_study import command, study
from tests.tcjepa.shards import write_shards


def opened(world: Path, **changes: object) -> StudyConfig:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load(StudyConfig, world / "study.yaml", overrides)


@given(st.integers(1, 9), st.integers(1, 4))
def test_parts_share_the_trials_out(count: int, seeds: int) -> None:
    made = study(Path("unused"), seeds=list(range(seeds)))
    shares = [chosen(made, (number, count)) for number in range(1, count + 1)]
    together = [trial for share in shares for trial in share]
    assert sorted(together, key=trials_of(made).index) == trials_of(made)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("part", ["3/2", "one/2"])
def test_parts_that_do_not_exist(world: Path, part: str) -> None:
    done = subprocess.run(
        [*command(world), "--part", part], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"--part {part}" in done.stderr


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
    mixed = made.model_copy(update={"mixed": True})
    lines = provenance.check_same(mixed, trials)
    assert [line.endswith("evaluated again since (1 runs)") for line in lines] == [False, True]
    unsealed = json.loads(noted)
    del unsealed["evaluation"]  # as runs before there was a seal
    notes.write_text(json.dumps(unsealed))
    assert provenance.check_same(made, trials)
    result.write_text(evaluated)
    notes.write_text(noted)


def test_an_unfinished_run_of_other_code_is_not_continued(world: Path) -> None:
    made = opened(world)
    trial = trials_of(made)[0]
    folder = Path(trial.folder)
    folder.mkdir(parents=True)
    (folder / provenance.PROVENANCE).write_text(json.dumps({"code": "other", "data": "other"}))
    (folder / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="began with other code and data"):
        run_trials(made, world / "base.yaml", print)


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


def test_labels_that_the_shards_lack_are_missed_before_anything_is_trained(world: Path) -> None:
    made = study(world, set=["evaluate.labels=[species]"], **ONE_ARM)
    with pytest.raises(ConfigError, match=r"evaluate\.labels: the shards have no column species"):
        run_trials(made, world / "base.yaml", lambda line: None)
    assert not Path(trials_of(made)[0].folder).exists()


ONE_ARM = {"axes": {"data.noise.rate": [0.0]}, "references": {}}


def test_a_failing_run_is_run_twice_and_listed(world: Path) -> None:
    made = study(world, **ONE_ARM)
    for shard in (world / "shards").glob("train-*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))  # as large as the manifest says
    said: list[str] = []
    assert run_trials(made, world / "base.yaml", said.append) == trials_of(made)
    first, second = said
    assert "rate 0.0, seed 0 failed and is run again: " in first and "readable" in first
    assert second.startswith("rate 0.0, seed 0 failed: ")


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


@given(st.lists(st.sampled_from("0123"), unique=True), st.integers(0, 9))
def test_processes_are_spread_evenly_over_gpus(names: list[str], running: int) -> None:
    taken: list[str | None] = []
    for _ in range(running):
        taken.append(gpus.least_used(names, taken))
    counts = [taken.count(name) for name in names] or [0]
    assert max(counts) - min(counts) <= 1
    assert set(taken) <= ({*names} or {None})


def test_each_run_sees_one_gpu(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VARIABLE, "5, 7")
    made = opened(world, parallel=3)
    for trial in trials_of(made):
        write_config(trial, training_config(made, trial, world / "base.yaml"))
    place = Processes(made)
    seen = []
    try:
        for trial in trials_of(made):
            place.start(trial, lambda: True)
            pid = place._running[trial].pid
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            seen += [item for item in environment if item.startswith(gpus.VARIABLE.encode())]
    finally:
        place.stop()
    assert [item.partition(b"=")[2] for item in seen] == [b"5", b"7", b"5"]


def test_dask_workers_run_the_trials(world: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        resources={"GPU": 1},
        dashboard_address=None,
        processes=True,
    ) as cluster:
        place = {"scheduler": cluster.scheduler_address, "resources": {"GPU": 1}}
        made = study(world, **ONE_ARM, **place)
        assert run_trials(made, world / "base.yaml", print) == []
    assert "1 of 1 runs finished" in write_report(made, outcomes(made))


def test_no_scheduler_at_an_address_is_said(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcjepa.ablate.dask_workers._CONNECT_SECONDS", 1)
    made = opened(world, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_trials(made, world / "base.yaml", print)
