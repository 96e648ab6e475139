"""Clusters: a real scheduler whose workers come, go, die and do not fit; SLURM's job script."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from pipeline.cluster import ClusterConfig, check_resources, connect, slurm_cluster
from pipeline.settings import ConfigError, build
from pipeline.storage import Directory
from pipeline.workers import code_digest

ROOT = Path(__file__).parents[2]


def config(**options: Any) -> ClusterConfig:
    return build(ClusterConfig, options)


class Processes:
    """A scheduler and its workers, each a process of its own; all end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        described = folder / "scheduler.json"
        self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0",
                    "--no-dashboard", "--scheduler-file", str(described))  # fmt: skip
        wait_until(lambda: described.exists() and described.read_text().endswith("}"))
        self.address: str = json.loads(described.read_text())["address"]

    def worker(self, *options: str, path: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a worker; `path` goes first in its search for packages."""
        options = ("--nthreads", "1", *options) if "--nthreads" not in options else options
        local = self.folder / f"worker-{len(self._started)}"
        return self._start("dask_worker", self.address, "--no-nanny", "--no-dashboard",
                           "--local-directory", str(local), *options, path=path)  # fmt: skip

    def _start(self, module: str, *options: str, path: Path | None = None) -> Any:
        environment = dict(os.environ)
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        log = (self.folder / f"{len(self._started)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *options],
            stdout=log, stderr=log, cwd=self.folder, env=environment,
        )  # fmt: skip
        log.close()
        self._started.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"{self._started.index(process)}.log").read_text()

    def end(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.wait()


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Processes(folder)
    yield started
    started.end()


def workers_of(client: Any) -> dict[str, Any]:
    return dict(client.scheduler_info(n_workers=-1)["workers"])


def changed_package(folder: Path) -> Path:
    """Return a folder that holds our package with one line more."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline")
    file = folder / "pipeline" / "schema.py"
    file.write_text(file.read_text() + "\n# another version\n")
    return folder


def no_package(folder: Path) -> Path:
    """Return a folder in which the package is not there to import."""
    folder.mkdir()
    (folder / "pipeline.py").write_text("raise ModuleNotFoundError(\"No module named 'pipeline'\")")
    return folder


def test_workers_that_do_not_fit_are_named_before_work_starts(
    processes: Processes, tmp_path: Path
) -> None:
    cases: list[tuple[tuple[str, ...], Path | None, str]] = [
        (("--nthreads", "2"), None, r"has 2 threads; start it with --nthreads 1"),
        ((), changed_package(tmp_path / "changed"), r"has other code of the package \(\w{12}\)"),
        ((), no_package(tmp_path / "none"), r"lacks this version of the package \(No module"),
    ]
    with Client(processes.address, set_as_default=False) as client:
        for options, path, message in cases:
            bad = processes.worker(*options, path=path)
            wait_until(lambda: len(workers_of(client)) == 1)
            with (
                pytest.raises(ConfigError, match=message),
                connect(config(address=processes.address), None),
            ):
                pytest.fail("the worker was taken")
            bad.kill()
            bad.wait()
            wait_until(lambda: not workers_of(client))


def test_a_worker_that_joins_late_and_does_not_fit_ends(
    processes: Processes, tmp_path: Path
) -> None:
    """It would take task after task and fail each within milliseconds."""
    processes.worker()
    with connect(config(address=processes.address), None) as client:
        wait_until(lambda: len(workers_of(client)) == 1)
        bad = processes.worker(path=no_package(tmp_path / "none"))
        assert bad.wait(60) is not None
        assert "lacks this version of the package" in processes.log(bad)
        good = processes.worker()
        wait_until(lambda: len(workers_of(client)) == 2)
        assert good.poll() is None
        assert client.submit(code_digest).result(timeout=60) == code_digest()
    late = processes.worker("--nthreads", "2")  # the run is over: not ours to judge
    with Client(processes.address, set_as_default=False) as client:
        wait_until(lambda: len(workers_of(client)) == 3)
    assert late.poll() is None


def test_a_worker_that_does_not_see_the_run_is_refused(
    processes: Processes, tmp_path: Path
) -> None:
    run = Directory(tmp_path / "run")
    run.write_text("config.yaml", "")
    processes.worker()
    with connect(config(address=processes.address), None, run) as client:
        wait_until(lambda: len(workers_of(client)) == 1)
    with (
        pytest.raises(ConfigError, match=r"the worker at tcp://.* does not see .*/elsewhere; put"),
        connect(config(address=processes.address), None, Directory(tmp_path / "elsewhere")),
    ):
        pytest.fail("the worker was taken")


def test_no_scheduler_is_a_named_error() -> None:
    with (
        pytest.raises(ConfigError, match=r"cluster\.address: no scheduler answers at tcp://"),
        connect(config(address="tcp://127.0.0.1:1"), None),
    ):
        pytest.fail("nothing answers there")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "tcp://h:1", "slurm": {}}, "address and slurm exclude each other"),
        ({"adaptive": {"maximum": 2}}, "adaptive starts and ends SLURM jobs; set slurm"),
        ({"slurm": {"jobs": 2}, "adaptive": {"maximum": 2}}, "set one of them"),
        ({"slurm": {}, "adaptive": {"minimum": 3, "maximum": 2}}, "minimum .3. exceeds maximum"),
        ({"address": "tcp://h:1", "worker_resources": {"GPU": 1}}, "dask worker --resources"),
        ({"address": "tcp://h:1", "memory_limit": "16GB"}, "dask worker --memory-limit 16GB"),
        ({"memory_limit": "much"}, "memory_limit.*'much' is no size; write it as 16GB"),
    ],
)
def test_impossible_combinations(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


def test_resources_that_no_worker_offers_are_refused() -> None:
    needed = {"download.resources": {}, "recaption.resources": {"GPU": 1.0}}
    with pytest.raises(ConfigError, match=r"recaption\.resources: needs GPU: 1, .* offers 0; set"):
        check_resources(config(), needed)
    with pytest.raises(ConfigError, match=r"worker_resources=.GPU: 1."):
        check_resources(config(worker_resources={"GPU": 0.5}), needed)
    check_resources(config(worker_resources={"GPU": 1}), needed)
    check_resources(config(address="tcp://h:1"), needed)


def test_tasks_go_to_the_workers_that_have_what_they_need(processes: Processes) -> None:
    processes.worker()
    processes.worker("--resources", "GPU=1")
    with connect(config(address=processes.address), None) as client:
        wait_until(lambda: len(workers_of(client)) == 2)
        with_gpu = {a for a, w in workers_of(client).items() if w["resources"]}
        tasks = [client.submit(pow, 2, n, resources={"GPU": 1}, pure=False) for n in range(6)]
        assert [task.result(timeout=60) for task in tasks] == [2**n for n in range(6)]
        ran = {address for held in client.who_has(tasks).values() for address in held}
        assert ran == with_gpu


def test_the_embedded_cluster_offers_what_it_is_told() -> None:
    with connect(config(workers=1, worker_resources={"GPU": 2}, dashboard=None), None) as client:
        (worker,) = workers_of(client).values()
        assert worker["resources"] == {"GPU": 2}
        assert worker["nthreads"] == 1
        assert worker["memory_limit"] == 0
    with connect(config(workers=1, memory_limit="3GB", dashboard=None), None) as client:
        assert [worker["memory_limit"] for worker in workers_of(client).values()] == [3 * 10**9]


@pytest.mark.parametrize(
    ("visible", "each", "expected"),
    [
        ("3,GPU-5", 1, {"3": 1, "GPU-5": 1, "": 0}),
        ("0,1,2,3,4", 2, {"0,1": 2, "2,3": 2, "": 0}),
        ("7", 0.5, {"7": 0.5, "": 0}),
    ],
)
def test_as_many_workers_offer_gpus_as_there_are(
    visible: str, each: float, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sees its own alone, also after it was killed; the others see none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = config(workers=3, worker_resources={"GPU": each, "net": 1}, dashboard=None)

    def placed() -> list[tuple[str, float]]:
        offered = {address: w["resources"] for address, w in workers_of(client).items()}
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert all(resources["net"] == 1 for resources in offered.values())
        return sorted((seen[address], r.get("GPU", 0)) for address, r in offered.items())

    with connect(asked, None) as client:
        before = placed()
        assert set(before) == set(expected.items()) and len(before) == 3
        (pid,) = client.run(os.getpid, workers=[next(iter(workers_of(client)))]).values()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(workers_of(client)) == 2)
        client.wait_for_workers(3)
        assert placed() == before


def test_a_worker_that_is_to_offer_more_gpus_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    asked = config(workers=1, worker_resources={"GPU": 2}, dashboard=None)
    with (
        pytest.raises(ConfigError, match="offer 2 GPUs, and this machine has 1"),
        connect(asked, None),
    ):
        pass


@pytest.fixture
def with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a way to have workers see GPUs, which only those of this test claim."""

    def see(visible: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setenv("TMPDIR", str(tmp_path))

    return see


def seen(client: Any) -> dict[str, tuple[str, float]]:
    """Return what each worker, by address, sees of the GPUs and offers."""
    variable = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    return {
        address: (variable[address], worker["resources"].get("GPU", 0))
        for address, worker in workers_of(client).items()
    }


@pytest.mark.parametrize(
    ("visible", "each", "expected"),
    [
        ("4,6", 1, [("", 0), ("4", 1), ("6", 1)]),
        ("0,1,2,3,4", 2, [("", 0), ("0,1", 2), ("2,3", 2)]),
        ("7,8", 0.5, [("7", 0.5), ("7", 0.5), ("8", 0.5)]),
    ],
)
def test_workers_that_share_a_variable_share_the_gpus_out(
    visible: str,
    each: float,
    expected: list[tuple[str, float]],
    processes: Processes,
    with_gpus: Callable[[str], None],
) -> None:
    """Whatever they are called; a GPU of one that was killed is free again."""
    with_gpus(visible)
    options = ("--resources", f"GPU={each:g}", "--preload", "pipeline.workers")
    started = [processes.worker(*options, path=ROOT) for _ in range(3)]
    with connect(config(address=processes.address), None) as client:
        wait_until(lambda: len(workers_of(client)) == 3)
        assert sorted(seen(client).values()) == expected
        started[0].kill()
        wait_until(lambda: len(workers_of(client)) == 2)
        left = sorted(seen(client).values())
        processes.worker(*options, path=ROOT)
        wait_until(lambda: len(workers_of(client)) == 3)
        (missing,) = Counter(expected) - Counter(left)
        took = Counter(seen(client).values()) - Counter(left)
        assert list(took) == [missing]


def test_a_worker_that_offers_a_gpu_which_another_has_is_refused(
    processes: Processes, with_gpus: Callable[[str], None]
) -> None:
    with_gpus("4,6")
    for _ in range(2):
        processes.worker("--resources", "GPU=1")
    with connect(config(address=processes.address), None) as client:
        wait_until(lambda: len(workers_of(client)) == 2)
        assert sorted(seen(client).values()) == [("4", 1), ("6", 1)]
        third = processes.worker("--resources", "GPU=1")
        assert third.wait(60) is not None
        assert "offers GPU=1, and other workers there have all GPUs" in processes.log(third)
    # Another run on the same workers finds each with the GPU it has.
    with connect(config(address=processes.address), None) as client:
        assert sorted(seen(client).values()) == [("4", 1), ("6", 1)]


SLURM = {"queue": "gpu", "account": "lab", "cores": 8, "memory": "64GB", "walltime": "04:00:00"}


def test_the_job_script_of_slurm() -> None:
    """No SLURM is needed to see what would be submitted; nothing is, as no job is asked for."""
    asked = config(
        slurm={**SLURM, "job_extra_directives": ["--gres=gpu:8"]},
        worker_resources={"GPU": 1},
        adaptive={"minimum": 0, "maximum": 4},
        dashboard=None,
    )
    with slurm_cluster(asked) as cluster:
        script = cluster.job_script()
        assert cluster._adaptive.maximum == 4 * 8  # workers: one per core of a job
    lines = script.splitlines()
    for line in ("-p gpu", "-A lab", "-t 04:00:00", "--cpus-per-task=8", "--gres=gpu:8"):
        assert f"#SBATCH {line}" in lines
    command = next(line for line in lines if "dask_worker" in line)
    assert command.startswith(sys.executable)
    for option in (
        "--nthreads 1",
        "--nworkers 8",
        '--resources "GPU=1"',
        "--preload pipeline.workers",
    ):
        assert option in command
    # dask-jobqueue writes a share of the job's memory; of two limits the last one counts.
    assert command.rindex("--memory-limit 0") > command.index("--memory-limit")


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({**SLURM, "jobs": 0}, r"slurm\.jobs: got 0; it must be a whole number from 1 on"),
        ({**SLURM, "jobs": "two"}, r"slurm\.jobs: got 'two'"),
        ({"cores": 8}, r"cluster\.slurm: .*memory"),
        ({**SLURM, "no_such_option": 1}, r"cluster\.slurm: .*no_such_option"),
    ],
)
def test_arguments_that_slurm_cannot_take(slurm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm_cluster(config(slurm=slurm, dashboard=None))


def digests(run: Path) -> dict[str, str]:
    shards = sorted((run / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}


def test_workers_join_leave_and_die_in_the_middle_of_a_run(
    processes: Processes, tmp_path: Path
) -> None:
    """One worker, then three of which one is killed: the bytes of an undisturbed run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def command(run: Path | str, *overrides: str) -> list[str]:
        small = ("source.train=60", "source.test=20", "part_rows=10", "pack.shard_mb=0.2")
        given = (f"run={run}", f"source.port={port}", *small, "cluster.dashboard=null", *overrides)
        return [sys.executable, "-m", "pipeline", "shards", "data_configs/scenes.yaml", *given]

    expected = tmp_path / "undisturbed"
    done = subprocess.run(command(expected), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr

    run = tmp_path / "run"  # named as it is from the driver's directory, which no worker is in
    relative = os.path.relpath(run, ROOT)
    fetched, measured = run / "tables" / "download", run / "tables" / "filter"
    first = processes.worker()
    with (tmp_path / "run.log").open("wb") as log:
        driver = subprocess.Popen(
            command(relative, f"cluster.address={processes.address}"),
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
    wait_until(lambda: len([*fetched.glob("*.parquet")]) >= 1 or driver.poll() is not None)
    processes.worker()
    third = processes.worker()
    wait_until(lambda: len([*measured.glob("*.parquet")]) >= 3 or driver.poll() is not None)
    assert driver.poll() is None, (tmp_path / "run.log").read_text()
    first.kill()
    third.terminate()  # leaves in peace: SIGTERM ends a worker after its task
    assert driver.wait(300) == 0, (tmp_path / "run.log").read_text()
    assert first.poll() is not None
    assert third.wait(60) is not None
    assert digests(run) == digests(expected)
