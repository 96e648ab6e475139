"""The Dask cluster a run uses: embedded by default, an existing scheduler, or SLURM."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.gpus import VARIABLE, groups, visible
from pipeline.settings import ConfigError, Settings
from pipeline.storage import Directory
from pipeline.workers import guarded

log = logging.getLogger(__name__)

_STARTS = 3  # tries to start the embedded cluster
_GPU = "GPU"
#: How embedded workers are kept. Dask has them give every freed 64 KiB back to the system, which
#: costs a worker that goes through megabytes of pixels per image a fifth of its time in page faults
#: (docs/decisions.md); and it looks at what they do 100 times a second, for a page nobody opens.
_WORKER_SETTINGS = {
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 128 * 2**20,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 * 2**20,
    "distributed.worker.profile.enabled": False,
}


class AdaptiveConfig(Settings):
    """How many SLURM jobs run, by how much there is to do."""

    minimum: int = Field(0, ge=0, description="jobs kept while the run lasts")
    maximum: int = Field(ge=1, description="jobs at most")

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveConfig:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) exceeds maximum ({self.maximum})")
        return self


class ClusterConfig(Settings):
    """Where tasks run."""

    workers: int | None = Field(
        None, ge=1, description="worker processes of the embedded cluster; null: one per core"
    )
    worker_resources: dict[str, float] = Field(
        {},
        description="resources each embedded or SLURM worker offers, such as {GPU: 1}; where the "
        "embedded cluster's machine has GPUs, only as many workers offer GPU as it has, and each "
        "sees its own alone; so it is with the workers of a SLURM job",
    )
    address: str | None = Field(
        None,
        description="an existing scheduler, tcp://host:port or tls://host:port; its workers need "
        "this package and one thread each (`dask worker ADDRESS --nthreads 1 --memory-limit 0`)",
    )
    slurm: dict[str, Any] | None = Field(
        None,
        description="arguments of dask_jobqueue.SLURMCluster (queue, account, cores, memory, "
        "walltime, job_extra_directives, …), plus `jobs`: how many to start, 1 if not said",
    )
    adaptive: AdaptiveConfig | None = Field(
        None, description="start and end SLURM jobs as work comes and goes; null: always `jobs`"
    )
    memory_limit: str | None = Field(
        None,
        description="of each embedded or SLURM worker, such as 16GB; one that exceeds it is killed "
        "and its task fails. null: none, since Dask's equal shares of the machine's memory are "
        "less than a captioner's weights or the stages of the whole run take",
    )
    dashboard: str | None = Field(
        "127.0.0.1:0", description="address of the Dask dashboard; port 0 picks one; null: none"
    )
    retries: int = Field(1, ge=0, description="further tries of a failed task")

    @field_validator("memory_limit")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        from dask.utils import parse_bytes

        try:
            if value is not None and parse_bytes(value) <= 0:
                raise ValueError
        except ValueError:
            raise ValueError(f"{value!r} is no size; write it as 16GB or 15GiB") from None
        return value

    @model_validator(mode="after")
    def _one_cluster(self) -> ClusterConfig:
        if self.address and self.slurm is not None:
            raise ValueError("address and slurm exclude each other; set one of them to null")
        if self.adaptive and self.slurm is None:
            raise ValueError("adaptive starts and ends SLURM jobs; set slurm, or leave it out")
        if self.adaptive and self.slurm is not None and "jobs" in self.slurm:
            raise ValueError("slurm.jobs is a fixed number and adaptive a range; set one of them")
        if self.address and self.memory_limit:
            raise ValueError(
                "memory_limit: workers at `address` are started elsewhere; give it to them there "
                "(dask worker --memory-limit 16GB)"
            )
        if self.address and self.worker_resources:
            raise ValueError(
                "worker_resources: workers at `address` are started elsewhere; give it to them "
                "there (dask worker --resources GPU=1)"
            )
        return self


def check_resources(config: ClusterConfig, needed: Mapping[str, Mapping[str, float]]) -> None:
    """Raise `ConfigError` if a stage needs what no worker will offer: it would wait for ever.

    `needed` maps config keys, such as `recaption.resources`, to their values. Nothing is known of
    the workers that an existing scheduler has or will have.
    """
    if config.address:
        return
    for key, resources in needed.items():
        for name, count in resources.items():
            offered = config.worker_resources.get(name, 0)
            if offered < count:
                raise ConfigError(
                    f"{key}: needs {name}: {count:g}, but a worker offers {offered:g}; set "
                    f"cluster.worker_resources={{{name}: {count:g}}}"
                )


@contextmanager
def connect(
    config: ClusterConfig, scratch: str | None, run: Directory | None = None
) -> Iterator[Any]:
    """Yield a `distributed.Client`; a cluster that was started for it ends with the context.

    `scratch` is a local folder for Dask's spill files. Workers have one thread each: img2dataset
    redirects a process's stdout while it resizes, so two downloads cannot share a process.
    Workers may join and leave at any time; one that would write other bytes, or does not see the
    directory of the `run`, is refused.
    Raises `ConfigError` if the scheduler does not answer, its workers cannot do this run's work,
    or an extra is missing.
    """
    import dask
    from distributed import Client

    # Errors of tasks reach the driver and `events.jsonl`; what Dask itself logs while workers come
    # and go would only bury the progress lines.
    settings: dict[str, Any] = {"logging": {"distributed": "critical"}, **_WORKER_SETTINGS}
    if scratch is not None:
        settings["temporary-directory"] = scratch
    with dask.config.set(settings), ExitStack() as stack:
        if config.address:
            client = stack.enter_context(_existing(config.address))
            stack.enter_context(guarded(client, run))
        else:
            start = slurm_cluster if config.slurm is not None else _local_cluster
            cluster = stack.enter_context(start(config))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            if config.slurm is not None:
                stack.enter_context(guarded(client, run))
        yield client


def _existing(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"cluster.address: no scheduler answers at {address} ({error})"
        ) from error


def _local_cluster(config: ClusterConfig) -> Any:
    from distributed import LocalCluster

    gpus = visible()
    per_worker = max(1, math.ceil(config.worker_resources.get(_GPU, 0)))
    if gpus and config.worker_resources.get(_GPU) and per_worker > len(gpus):
        raise ConfigError(
            f"cluster.worker_resources: a worker is to offer {per_worker} GPUs, and this machine "
            f"has {len(gpus)}"
        )

    start = functools.partial(
        LocalCluster,
        n_workers=config.workers or os.cpu_count() or 1,
        threads_per_worker=1,
        memory_limit=config.memory_limit or 0,
        processes=True,
        host="127.0.0.1",
        # The scheduler always serves a health page; without a dashboard on any port.
        dashboard_address=config.dashboard or "127.0.0.1:0",
        scheduler_kwargs={"dashboard": config.dashboard is not None},
        worker_class=_placed(config.worker_resources, groups(gpus, per_worker)),
        silence_logs=logging.CRITICAL,
    )
    for _ in range(_STARTS - 1):
        try:
            return start()
        except RuntimeError as error:  # a worker that is killed as it starts takes all down
            log.warning("the workers did not start (%s); once more", error)
    return start()


def _placed(resources: dict[str, float], owned: list[str]) -> Any:
    """Return the class of the embedded workers' keepers.

    Worker n offers `resources` and sees the GPUs `owned[n]`; later workers see and offer no GPU.
    Without GPUs all offer what was asked for: a model that then runs on the CPU has its workers.
    """
    from distributed import Nanny

    class PlacedNanny(Nanny):  # type: ignore[misc]
        def __init__(self, *arguments: Any, name: Any, **options: Any) -> None:
            offered, environment = dict(resources), {}
            if owned and _GPU in resources:
                has_gpu = int(name) < len(owned)
                environment = {VARIABLE: owned[int(name)] if has_gpu else ""}
                if not has_gpu:
                    del offered[_GPU]
            super().__init__(
                *arguments, name=name, resources=offered or None, env=environment, **options
            )

    return PlacedNanny


def slurm_cluster(config: ClusterConfig) -> Any:
    """Return a `dask_jobqueue.SLURMCluster` whose jobs are submitted, or will be as needed.

    Raises `ConfigError` if dask-jobqueue is missing, or refuses the arguments.
    """
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError("cluster.slurm needs an extra: pip install 'tcjepa[slurm]'") from error
    arguments = dict(config.slurm or {})
    jobs = arguments.pop("jobs", 1)
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ConfigError(f"cluster.slurm.jobs: got {jobs!r}; it must be a whole number from 1 on")
    # One thread per worker process, whatever cores a job has; see `connect`.
    arguments["processes"] = arguments.get("processes", arguments.get("cores", 1))
    extra = ["--memory-limit", config.memory_limit or "0"]  # the job's own limit holds in any case
    if config.worker_resources:
        offered = " ".join(f"{name}={count:g}" for name, count in config.worker_resources.items())
        extra += ["--resources", f'"{offered}"', "--preload", "pipeline.workers"]
    arguments["worker_extra_args"] = [*extra, *arguments.get("worker_extra_args", [])]
    scheduler = {
        "dashboard_address": config.dashboard or ":0",
        **arguments.pop("scheduler_options", {}),
    }
    try:
        cluster = SLURMCluster(**arguments, scheduler_options=scheduler)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cluster.slurm: {error}") from error
    if config.adaptive:
        cluster.adapt(minimum_jobs=config.adaptive.minimum, maximum_jobs=config.adaptive.maximum)
    else:
        cluster.scale(jobs=jobs)
    return cluster
