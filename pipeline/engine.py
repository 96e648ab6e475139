"""Submit stage tasks to Dask, skip what is done, and record what happens."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterConfig, connect
from pipeline.device_errors import device_lost
from pipeline.progress import Progress
from pipeline.stages.task import StageReport, Task, which_done
from pipeline.storage import Directory
from pipeline.workers import end_worker

EVENTS = "events.jsonl"
#: There while a cluster works on the run: the dashboard's link and the driver's process id.
DASHBOARD = "dashboard.json"
#: Tasks submitted at a time, so that neither driver nor scheduler grows with the run.
IN_FLIGHT = 512
_FLUSH_S = 30.0


@dataclass(frozen=True)
class Job:
    """One task: a stage on a part (or on the whole run), after the jobs it depends on."""

    stage: str
    name: str
    fingerprint: str
    function: Callable[..., StageReport]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    resources: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What other jobs name in `after`."""
        return f"{self.stage}-{self.name}"


@dataclass(frozen=True)
class Finished:
    """What came back from a worker."""

    report: StageReport
    seconds: float


@dataclass
class _Flight:
    """Jobs that Dask has; a job that has landed leaves nothing on the scheduler."""

    jobs: dict[Any, Job] = field(default_factory=dict)
    futures: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def took_off(self, job: Job, future: Any) -> None:
        self.jobs[future], self.futures[job.key] = job, future

    def landed(self, future: Any) -> Job:
        job = self.jobs.pop(future)
        del self.futures[job.key]
        return job


class Engine:
    """Runs jobs on the configured cluster, which starts with the first job that has work to do.

    `failures` maps the name of a part to (stage, error) once a job of it has failed; the other
    parts go on.
    """

    def __init__(self, run: Directory, config: ClusterConfig) -> None:
        self.run = run
        self.config = config
        self.failures: dict[str, tuple[str, str]] = {}
        self._name = hashlib.sha256(run.url.encode()).hexdigest()[:8]
        self._stack = ExitStack()
        self._client: Any = None
        self._events: list[str] = []
        self._flushed = time.monotonic()
        if not run.is_local and run.exists(EVENTS):
            self._events = run.read_bytes(EVENTS).decode().splitlines()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if self._client is not None:
            self.run.remove(DASHBOARD)
        self._flush_events()

    def execute(
        self, label: str, jobs: Iterable[Job], before: Callable[[set[str]], None] | None = None
    ) -> None:
        """Run jobs to their end, skipping those whose output is there and not to be made of anew.

        A job must come after the jobs it names in `after`. At most `IN_FLIGHT` are submitted at a
        time, so that neither the driver nor the scheduler grows with the run. `before` is called
        first, with the stages that have something to do.
        """
        jobs = list(jobs)
        done = which_done(self.run, [(job.stage, job.name, job.fingerprint) for job in jobs])
        pending: list[Job] = []
        renewed: set[str] = set()
        for job, there in zip(jobs, done, strict=True):
            if not there or not renewed.isdisjoint(job.after):
                pending.append(job)
                renewed.add(job.key)
        if before is not None:
            before({job.stage for job in pending})
        with Progress(label, len(jobs), "tasks") as progress:
            progress.skip(len(jobs) - len(pending))
            if pending:
                self._run(pending, progress)

    def _run(self, pending: list[Job], progress: Progress) -> None:
        from distributed import as_completed

        self._connected()
        queue = iter(pending)
        flight = _Flight()
        finished = as_completed(loop=self._client.loop)
        try:
            while self._submit_next(queue, flight, finished, progress) or flight.jobs:
                future = next(finished)
                job = flight.landed(future)
                error = future.exception() if future.status != "finished" else None
                if error is None:
                    result: Finished = future.result()
                    self.event(job.stage, job.name, result.seconds, result.report)
                    progress.advance(1, note=f"{job.stage} {job.name}")
                else:
                    flight.failed[job.key] = _text(error)
                    self._fail(job, _text(error), progress)
        except BaseException:
            self._client.cancel(list(flight.jobs))
            raise

    def _submit_next(
        self, queue: Iterator[Job], flight: _Flight, finished: Any, progress: Progress
    ) -> bool:
        """Submit jobs until enough are in flight; return whether any was submitted."""
        submitted = False
        while len(flight.jobs) < IN_FLIGHT and (job := next(queue, None)) is not None:
            lost = [flight.failed[key] for key in job.after if key in flight.failed]
            if lost:
                flight.failed[job.key] = lost[0]
                self._fail(job, lost[0], progress)
                continue
            future = self._client.submit(
                _work,
                job.function,
                Task(self.run, job.stage, job.fingerprint),
                job.arguments,
                [flight.futures[key] for key in job.after if key in flight.futures],
                # Another run may work on the same cluster: equal keys would be one task.
                key=f"{job.key}-{job.fingerprint[:12]}-{self._name}",
                resources=job.resources or None,
                retries=self.config.retries,
                pure=False,
            )
            flight.took_off(job, future)
            finished.add(future)
            submitted = True
        return submitted

    def _fail(self, job: Job, error: str, progress: Progress) -> None:
        first = job.name not in self.failures
        if first:
            self.failures[job.name] = (job.stage, error)
        self.event(job.stage, job.name, 0.0, StageReport(), error=error)
        progress.advance(1, int(first), note=f"{job.stage} {job.name}")

    def event(
        self, stage: str, name: str, seconds: float, report: StageReport, error: str | None = None
    ) -> None:
        """Append one line to `events.jsonl`."""
        line = json.dumps(
            {
                "time": round(time.time(), 3),
                "stage": stage,
                "part": name,
                "seconds": round(seconds, 3),
                "bytes": report.bytes,
                "counts": report.counts,
                "figures": report.figures,
                "error": error,
            }
        )
        if self.run.is_local:
            with Path(self.run.path(EVENTS)).open("a") as file:
                file.write(line + "\n")
        else:
            self._events.append(line)
            if time.monotonic() - self._flushed > _FLUSH_S:
                self._flush_events()

    def _flush_events(self) -> None:
        # Object stores cannot append: all lines are put again, every so often and when a run ends.
        self._flushed = time.monotonic()
        try:
            if self._events:
                self.run.write_text(EVENTS, "\n".join(self._events) + "\n")
        except Exception as error:  # whatever the store raises: work goes on, and the next flush
            print(f"{EVENTS} could not be written: {error!r}", file=sys.stderr)

    def _connected(self) -> Any:
        if self._client is None:
            scratch = self.run.path(".dask") if self.run.is_local else None
            self._client = self._stack.enter_context(connect(self.config, scratch, self.run))
            link = self._client.dashboard_link if self.config.dashboard else None
            if link:
                print(f"Dask dashboard: {link}", flush=True)
            self.run.write_json(DASHBOARD, {"link": link, "pid": os.getpid()})
        return self._client


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _work(
    function: Callable[..., StageReport], task: Task, arguments: tuple[Any, ...], after: list[Any]
) -> Finished:
    """Run one stage task on a worker; `after` only makes Dask wait for what it names.

    A worker whose GPU is lost ends: it would fail all that comes, at once, and so get more of it.
    """
    started = time.monotonic()
    try:
        report = function(task, *arguments)
    except Exception as error:
        if device_lost(error):
            end_worker()
        raise
    return Finished(report, time.monotonic() - started)
