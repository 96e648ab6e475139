"""How a study's runs are run: in shares, on GPUs and Dask workers, again after a failure."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import gpus
from pipeline.settings import ConfigError
from tcjepa.ablate.report import write_report
from tcjepa.ablate.results import outcomes
from tcjepa.ablate.runner import Processes, chosen, run_trials
from tcjepa.ablate.study import training_config, trials_of
from tcjepa.ablate.trial import write_config
from tests.tcjepa.ablate.worlds import ONE_ARM, command, opened, study
from tests.tcjepa.shards import write_shards


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


def test_labels_that_the_shards_lack_are_missed_before_anything_is_trained(world: Path) -> None:
    made = study(world, set=["evaluate.labels=[species]"], **ONE_ARM)
    with pytest.raises(ConfigError, match=r"evaluate\.labels: the shards have no column species"):
        run_trials(made, world / "base.yaml", lambda line: None)
    assert not Path(trials_of(made)[0].folder).exists()


def test_every_arm_s_own_images_are_asked_for_their_labels(world: Path) -> None:
    """The first arm has them, and another arm on the same shards; one asks its shards for more."""
    unlabelled = world / "unlabelled"
    write_shards(unlabelled, 36, split=lambda i: "train" if i < 24 else "test")
    for keys in ([f"data.shards={unlabelled}"], ["evaluate.labels=[species]"]):
        levels = {"one": [], "same": ["train.lr=0.5"], "other": keys}
        made = study(world, axes={"world": levels}, x="world", references={})
        with pytest.raises(ConfigError, match=r"evaluate\.labels: the shards have no column"):
            run_trials(made, world / "base.yaml", lambda line: None)
        assert not any(Path(trial.folder).exists() for trial in trials_of(made))


def test_a_failing_run_is_run_twice_and_listed(world: Path) -> None:
    made = study(world, **ONE_ARM)
    for shard in (world / "shards").glob("train-*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))  # as large as the manifest says
    said: list[str] = []
    assert run_trials(made, world / "base.yaml", said.append) == trials_of(made)
    first, second = said
    assert "rate 0.0, seed 0 failed and is run again: " in first and "readable" in first
    assert second.startswith("rate 0.0, seed 0 failed: ")


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


def gpu_of_a_trial() -> str | None:
    """Return the GPU that a trial would be given on this worker."""
    from tcjepa.ablate import dask_workers

    given: list[str | None] = []
    dask_workers.start = lambda *arguments: given.append(arguments[3])  # type: ignore
    problem = dask_workers.run_here(None, 1, lambda: True)  # type: ignore[arg-type]
    return str(problem) if problem else given[0]


def test_trials_on_dask_workers_have_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv(gpus.VARIABLE, "5,7")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    options = {"threads_per_worker": 1, "dashboard_address": None, "resources": {"GPU": 1}}
    with (
        distributed.LocalCluster(n_workers=3, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        workers = 2 * sorted(client.scheduler_info(n_workers=-1)["workers"])
        asked = [client.submit(gpu_of_a_trial, workers=[one], pure=False) for one in workers]
        found = client.gather(asked)
    assert found[:3] == found[3:], "a worker keeps its GPU"
    *own, refused = sorted(found[:3])
    assert own == ["5", "7"]
    assert "other workers there have all GPUs" in refused


def test_no_scheduler_at_an_address_is_said(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcjepa.ablate.dask_workers._CONNECT_SECONDS", 1)
    made = opened(world, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_trials(made, world / "base.yaml", print)
