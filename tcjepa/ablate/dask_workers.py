"""Trials on the workers of a Dask cluster, such as one worker per GPU; needs `dask[distributed]`.

The cluster must see the study's directory under the same path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline import gpus
from pipeline.settings import ConfigError
from tcjepa.ablate.runner import Problem, problem_of
from tcjepa.ablate.study import StudyConfig, Trial
from tcjepa.ablate.trial import TrialBusyError, start
from tcjepa.data.config import workers_for

_CONNECT_SECONDS = 30


class DaskWorkers:
    """The workers of the scheduler at `study.scheduler`, as many trials as they have resources."""

    def __init__(self, study: StudyConfig) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError(
                "scheduler: runs on Dask workers need `pip install 'dask[distributed]'`"
            ) from error
        try:
            self._client: Any = Client(study.scheduler, timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise ConfigError(
                f"scheduler: no Dask scheduler answers at {study.scheduler}: {error}"
            ) from error
        self._threads, self._resources = study.threads, study.resources
        self._futures: dict[Trial, Any] = {}

    @property
    def room(self) -> int:
        """How many more trials may start now: Dask queues what its workers cannot take yet."""
        return 1

    def start(self, trial: Trial, before: Callable[[], bool]) -> None:
        """Begin a trial."""
        self._futures[trial] = self._client.submit(
            run_here, trial, self._threads, before, resources=self._resources, pure=False, retries=0
        )

    def ended(self) -> list[tuple[Trial, Problem]]:
        """Return the trials that ended since the last call, with what went wrong."""
        over = [trial for trial, future in self._futures.items() if future.done()]
        found: list[tuple[Trial, Problem]] = []
        for trial in over:
            future = self._futures.pop(trial)
            if future.status == "finished":
                found.append((trial, future.result()))
            else:  # the worker died, or the task was lost with it
                found.append((trial, f"{future.status}: {future.exception()!r}"))
        return found

    def stop(self) -> None:
        """Cancel what waits; a trial that runs goes on to its end, and a rerun finds its result."""
        self._client.cancel(list(self._futures.values()))
        self._client.close()


def run_here(trial: Trial, threads: int | None, before: Callable[[], bool]) -> Problem:
    """Run a trial on this worker, and its GPUs if it offers some; return what went wrong.

    `threads` are the cores that the trial may use; None: one to compute on, all to load data.
    Busy is a trial whose worker died: Dask runs it anew at once, while its process still saves.
    """
    gpu = None
    if offered := _offered_gpus():
        gpu = gpus.claim(offered)
        if gpu is None:
            return (
                f"the worker offers GPU={offered:g}, and other workers there have all GPUs that it "
                "sees; start workers with --preload pipeline.workers, and each offers what it has"
            )
    try:
        workers = None if threads is None else workers_for(threads)
        process = start(trial, threads or 1, before, gpu or None, workers)
    except TrialBusyError as error:
        return error
    return None if process is None else problem_of(trial, process.wait())


def _offered_gpus() -> float:
    from distributed import get_worker

    try:
        return float(get_worker().state.total_resources.get("GPU", 0))
    except ValueError:  # on no worker
        return 0.0


__all__ = ["DaskWorkers", "run_here"]
