"""What a worker must be for a run: this very code, the same Python, one thread.

A worker started elsewhere may hold another version, and would write other bytes than its
neighbours, or lack the package and swallow task after task. Such a worker is named before work
starts if it is there, and turned away if it joins later.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.gpus import VARIABLE, groups, visible
from pipeline.settings import ConfigError

_PLUGIN = "pipeline-worker-check"


def code_digest() -> str:
    """Return 12 hex digits that change with any line of the `pipeline` package."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def guarded(client: Any) -> Iterator[None]:
    """Have every worker of a client's scheduler checked, now and as it joins.

    Raises `ConfigError` that names the first worker that cannot do this run's work, and why. A
    worker that joins later and does not fit says so in its own log and ends.
    """
    fault = _fault_finder(code_digest(), platform.python_version_tuple()[:2])
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


def _fault_finder(code: str, python: tuple[str, ...]) -> Callable[..., str | None]:
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
        return f"{where} has {threads} threads; start it with --nthreads 1" if threads > 1 else None

    return fault


def settle(name: str, resources: Mapping[str, float]) -> None:
    """Leave a worker that offers GPUs its own of a job's: the workers of a job share its variable.

    `dask worker --nworkers N` ends their names in -0, -1, …; called before anything uses CUDA.
    """
    count, own = math.ceil(resources.get("GPU", 0)), re.search(r"-(\d+)$", name)
    gpus = visible()
    if count and own and len(gpus) > count:
        shares = groups(gpus, count)
        os.environ[VARIABLE] = shares[int(own.group(1)) % len(shares)]


def _doorkeeper(fault: Callable[..., str | None]) -> Any:
    from distributed import WorkerPlugin

    class Doorkeeper(WorkerPlugin):  # type: ignore[misc]
        async def setup(self, worker: Any) -> None:
            found = fault(worker)
            if found is not None:
                await worker.close(nanny=True, reason=found)
                raise RuntimeError(found)
            from pipeline.workers import settle  # here: the class travels by value

            settle(str(worker.name), worker.state.total_resources)

    return Doorkeeper()
