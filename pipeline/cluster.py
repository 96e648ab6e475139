"""The Dask cluster a run uses: embedded by default, an existing scheduler, or SLURM."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, model_validator

from pipeline.settings import ConfigError, Settings


class ClusterConfig(Settings):
    """Where tasks run."""

    workers: int | None = Field(
        None, ge=1, description="worker processes of the embedded cluster; null: one per core"
    )
    worker_resources: dict[str, float] = Field(
        {}, description="resources each embedded worker offers, such as {GPU: 1}"
    )
    address: str | None = Field(
        None, description="an existing scheduler, tcp://host:port; its workers need this package"
    )
    slurm: dict[str, Any] | None = Field(
        None, description="arguments of dask_jobqueue.SLURMCluster, plus `jobs`: how many to start"
    )
    dashboard: str | None = Field(
        "127.0.0.1:0", description="address of the Dask dashboard; port 0 picks one; null: none"
    )
    retries: int = Field(1, ge=0, description="further tries of a failed task")

    @model_validator(mode="after")
    def _one_cluster(self) -> ClusterConfig:
        if self.address and self.slurm:
            raise ValueError("address and slurm exclude each other; set one of them to null")
        return self


@contextmanager
def connect(config: ClusterConfig, scratch: str | None) -> Iterator[Any]:
    """Yield a `distributed.Client`; an embedded cluster ends with the context.

    `scratch` is a local folder for Dask's spill files. Workers have one thread each: img2dataset
    redirects a process's stdout while it resizes, so two downloads cannot share a process.
    Raises `ConfigError` if the scheduler does not answer or an extra is missing.
    """
    import dask
    from distributed import Client, LocalCluster

    # Errors of tasks reach the driver and `events.jsonl`; what Dask itself logs while workers come
    # and go would only bury the progress lines.
    settings: dict[str, Any] = {"logging": {"distributed": "critical"}}
    if scratch is not None:
        settings["temporary-directory"] = scratch
    with dask.config.set(settings):
        if config.address:
            try:
                client = Client(config.address, timeout="20s", set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise ConfigError(
                    f"cluster.address: no scheduler answers at {config.address} ({error})"
                ) from error
            with client:
                yield client
        elif config.slurm is not None:
            with _slurm(config) as cluster, Client(cluster, set_as_default=False) as client:
                yield client
        else:
            cluster = LocalCluster(
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
            with cluster, Client(cluster, set_as_default=False) as client:
                yield client


def _slurm(config: ClusterConfig) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError("cluster.slurm needs an extra: pip install 'tcjepa[slurm]'") from error
    arguments = dict(config.slurm or {})
    jobs = int(arguments.pop("jobs", 1))
    # One thread per worker process, whatever cores a job has; see `connect`.
    arguments.setdefault("processes", int(arguments.get("cores", 1)))
    cluster = SLURMCluster(**arguments)
    cluster.scale(jobs=jobs)
    return cluster
