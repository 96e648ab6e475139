"""How a study's runs are run: in shares, on Dask workers, again after a failure, never mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import gpus
from pipeline.settings import ConfigError, load
from tcjepa.ablate import provenance
from tcjepa.ablate.report import write_report
from tcjepa.ablate.results import outcomes
from tcjepa.ablate.runner import Processes, chosen, run_trials
from tcjepa.ablate.study import StudyConfig, trials_of
from tcjepa.ablate.trial import TrialBusyError, is_finished, start, write_config
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
        assert [problem for _, problem in place.ended()] == [
            f"{folder} is being run by another process"
        ]
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
        write_config(made, trial, world / "base.yaml")
    place = Processes(made)
    seen = []
    try:
        for trial in trials_of(made):
            place.start(trial, lambda: None)
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
