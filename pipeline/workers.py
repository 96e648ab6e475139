"""What a worker must be for a run: this very code, the same Python, one thread, its own GPUs.

A worker started elsewhere may hold another version, and would write other bytes than its
neighbours, or lack the package and swallow task after task. Such a worker is named before work
starts if it is there, and turned away if it joins later.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.gpus import VARIABLE, claim
from pipeline.settings import ConfigError
from pipeline.storage import Directory

_PLUGIN = "pipeline-worker-check"


def code_digest() -> str:
    """Return 12 hex digits that change with any line of the `pipeline` package."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def guarded(client: Any, run: Directory | None = None) -> Iterator[None]:
    """Have every worker of a client's scheduler checked, now and as it joins.

    With a `run` also whether it sees that directory.

    Raises `ConfigError` that names the first worker that cannot do this run's work, and why. A
    worker that joins later and does not fit says so in its own log and ends.
    """
    url = None if run is None else run.url
    fault = _fault_finder(code_digest(), platform.python_version_tuple()[:2], url)
    # A worker that leaves while it is asked is none of ours any more.
    for found in client.run(fault, on_error="ignore").values():
        if found is not None:
            raise ConfigError(f"cluster: {found}")
    client.register_plugin(_doorkeeper(fault), name=_PLUGIN)
    try:
        yield
    finally:
        if client.status == "running":
            # Another run on this scheduler may have ended, and taken it along.
            with suppress(KeyError, ValueError):
                client.unregister_worker_plugin(_PLUGIN)


def _fault_finder(code: str, python: tuple[str, ...], run: str | None) -> Callable[..., str | None]:
    """Return a function that says what is wrong with the worker it runs on, or None.

    Made in here, as is the plugin's class, so that it travels by value: a worker without this
    package could not look it up.
    """

    def fault(dask_worker: Any) -> str | None:
        import platform
        import sys

        where = f"the worker at {dask_worker.address} ({sys.executable})"
        found = platform.python_version_tuple()[:2]
        if found != python:
            versions = f"Python {'.'.join(found)}, the run {'.'.join(python)}"
            return f"{where} runs {versions}; start it from the run's environment"
        try:
            from pipeline.workers import code_digest
        except ImportError as error:
            return f"{where} lacks this version of the package ({error}); install it there"
        if (theirs := code_digest()) != code:
            return (
                f"{where} has other code of the package ({theirs}) than the run ({code}); install "
                "the run's there and restart the worker"
            )
        threads = dask_worker.state.nthreads
        if threads > 1:
            return f"{where} has {threads} threads; start it with --nthreads 1"
        if run is not None:
            from pipeline.storage import Directory

            try:
                there = bool(Directory(run).names())
            except Exception as error:  # whatever a file system says without credentials
                return f"{where} cannot read {run} ({error!r})"
            if not there:
                return (
                    f"{where} does not see {run}; put the run where all machines see it under one "
                    "name, such as a shared file system or s3://"
                )
        from pipeline.workers import settle

        offered = dask_worker.state.total_resources.get("GPU", 0)
        if not settle(offered):
            return (
                f"{where} offers GPU={offered:g}, and other workers there have all GPUs that it "
                "sees; start it with --preload pipeline.workers, and it offers what is left"
            )
        return None

    return fault


def settle(offered: float) -> bool:
    """Leave a worker that offers GPUs its own of those it sees; return False if none are left.

    The workers of a machine or job share one variable. Called before anything uses CUDA.
    """
    own = claim(offered) if offered else ""
    if own:
        os.environ[VARIABLE] = own
    return own is not None


def dask_setup(worker: Any) -> None:
    """Settle a worker before it joins (`dask worker --preload pipeline.workers`).

    One that finds all GPUs taken joins as a worker without: a job has more cores than GPUs.
    """
    if not settle(worker.state.total_resources.get("GPU", 0)):
        os.environ[VARIABLE] = ""
        for resources in (worker.state.total_resources, worker.state.available_resources):
            del resources["GPU"]


def end_worker() -> None:
    """Have this Dask worker end as soon as its task has failed; its nanny starts it anew.

    Without a worker, or without a nanny, nothing ends: nobody would come back.
    """
    from distributed import Status, get_worker

    try:
        worker = get_worker()
    except ValueError:
        return

    async def end() -> None:
        # At once, before the scheduler hears of the failure: the next try must not come here.
        worker.status = Status.paused
        await worker.close_gracefully(restart=True, reason="the device is lost")

    if worker.nanny is not None:
        worker.loop.add_callback(end)


def _doorkeeper(fault: Callable[..., str | None]) -> Any:
    from distributed import WorkerPlugin

    class Doorkeeper(WorkerPlugin):  # type: ignore[misc]
        async def setup(self, worker: Any) -> None:
            found = fault(worker)
            if found is not None:
                await worker.close(nanny=True, reason=found)
                raise RuntimeError(found)

    return Doorkeeper()
