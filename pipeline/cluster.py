"""The Dask cluster a run uses: embedded by default, an existing scheduler, or SLURM."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import Field, model_validator

from pipeline.settings import ConfigError, Settings
from pipeline.workers import guarded

log = logging.getLogger(__name__)

_STARTS = 3  # tries to start the embedded cluster


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
        {}, description="resources each embedded or SLURM worker offers, such as {GPU: 1}"
    )
    address: str | None = Field(
        None,
        description="an existing scheduler, tcp://host:port or tls://host:port; its workers need "
        "this package and one thread each (`dask worker ADDRESS --nthreads 1`)",
    )
    slurm: dict[str, Any] | None = Field(
        None,
        description="arguments of dask_jobqueue.SLURMCluster (queue, account, cores, memory, "
        "walltime, job_extra_directives, …), plus `jobs`: how many to start, 1 if not said",
    )
    adaptive: AdaptiveConfig | None = Field(
        None, description="start and end SLURM jobs as work comes and goes; null: always `jobs`"
    )
    dashboard: str | None = Field(
        "127.0.0.1:0", description="address of the Dask dashboard; port 0 picks one; null: none"
    )
    retries: int = Field(1, ge=0, description="further tries of a failed task")

    @model_validator(mode="after")
    def _one_cluster(self) -> ClusterConfig:
        if self.address and self.slurm is not None:
            raise ValueError("address and slurm exclude each other; set one of them to null")
        if self.adaptive and self.slurm is None:
            raise ValueError("adaptive starts and ends SLURM jobs; set slurm, or leave it out")
        if self.adaptive and self.slurm is not None and "jobs" in self.slurm:
            raise ValueError("slurm.jobs is a fixed number and adaptive a range; set one of them")
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
def connect(config: ClusterConfig, scratch: str | None) -> Iterator[Any]:
    """Yield a `distributed.Client`; a cluster that was started for it ends with the context.

    `scratch` is a local folder for Dask's spill files. Workers have one thread each: img2dataset
    redirects a process's stdout while it resizes, so two downloads cannot share a process.
    Workers may join and leave at any time; one that would write other bytes is refused.
    Raises `ConfigError` if the scheduler does not answer, its workers cannot do this run's work,
    or an extra is missing.
    """
    import dask
    from distributed import Client

    # Errors of tasks reach the driver and `events.jsonl`; what Dask itself logs while workers come
    # and go would only bury the progress lines.
    settings: dict[str, Any] = {"logging": {"distributed": "critical"}}
    if scratch is not None:
        settings["temporary-directory"] = scratch
    with dask.config.set(settings), ExitStack() as stack:
        if config.address:
            client = stack.enter_context(_existing(config.address))
            stack.enter_context(guarded(client))
        else:
            start = slurm_cluster if config.slurm is not None else _local_cluster
            cluster = stack.enter_context(start(config))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            if config.slurm is not None:
                stack.enter_context(guarded(client))
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

    start = functools.partial(
        LocalCluster,
        n_workers=config.workers or os.cpu_count() or 1,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        # The scheduler always serves a health page; without a dashboard on any port.
        dashboard_address=config.dashboard or "127.0.0.1:0",
        scheduler_kwargs={"dashboard": config.dashboard is not None},
        resources=config.worker_resources or None,
        silence_logs=logging.CRITICAL,
    )
    for _ in range(_STARTS - 1):
        try:
            return start()
        except RuntimeError as error:  # a worker that is killed as it starts takes all down
            log.warning("the workers did not start (%s); once more", error)
    return start()


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
    if config.worker_resources:
        offered = " ".join(f"{name}={count:g}" for name, count in config.worker_resources.items())
        extra = list(arguments.get("worker_extra_args", []))
        arguments["worker_extra_args"] = [*extra, "--resources", f'"{offered}"']
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
