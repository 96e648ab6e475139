"""Submit stage tasks to Dask, skip what is done, and record what happens."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterConfig, connect
from pipeline.progress import Progress
from pipeline.stages.task import StageReport, Task, is_done
from pipeline.storage import Directory

EVENTS = "events.jsonl"


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


class Engine:
    """Runs jobs on the configured cluster, which starts with the first job that has work to do.

    `failures` maps the name of a part to (stage, error) once a job of it has failed; the other
    parts go on.
    """

    def __init__(self, run: Directory, config: ClusterConfig) -> None:
        self.run = run
        self.config = config
        self.failures: dict[str, tuple[str, str]] = {}
        self._stack = ExitStack()
        self._client: Any = None
        self._events: list[str] = []
        if not run.is_local and run.exists(EVENTS):
            self._events = run.read_bytes(EVENTS).decode().splitlines()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._flush_events()

    def execute(self, label: str, jobs: Iterable[Job]) -> None:
        """Run jobs to their end, in dependency order, skipping those whose output is there."""
        jobs = list(jobs)
        pending = [
            job for job in jobs if not is_done(self.run, job.stage, job.name, job.fingerprint)
        ]
        with Progress(label, len(jobs), "tasks") as progress:
            progress.skip(len(jobs) - len(pending))
            if pending:
                self._run(pending, progress)

    def _run(self, pending: list[Job], progress: Progress) -> None:
        from distributed import as_completed

        client = self._connected()
        futures: dict[str, Any] = {}
        jobs: dict[Any, Job] = {}
        for job in pending:
            dependencies = [futures[key] for key in job.after if key in futures]
            future = client.submit(
                _work,
                job.function,
                Task(self.run, job.stage, job.fingerprint),
                job.arguments,
                dependencies,
                key=f"{job.key}-{job.fingerprint[:12]}",
                resources=job.resources or None,
                retries=self.config.retries,
                pure=False,
            )
            futures[job.key], jobs[future] = future, job
        try:
            for future in as_completed(jobs, loop=client.loop):
                failed = self._record(jobs[future], future)
                progress.advance(1, failed, note=f"{jobs[future].stage} {jobs[future].name}")
        except BaseException:
            client.cancel(list(jobs))
            raise

    def _record(self, job: Job, future: Any) -> int:
        if future.status == "finished":
            finished: Finished = future.result()
            self.event(job.stage, job.name, finished.seconds, finished.report)
            return 0
        error = future.exception()
        text = "".join(traceback.format_exception_only(error)).strip()
        first = job.name not in self.failures
        if first:
            self.failures[job.name] = (job.stage, text)
        self.event(job.stage, job.name, 0.0, StageReport(), error=text)
        return int(first)

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
                "error": error,
            }
        )
        if self.run.is_local:
            with Path(self.run.path(EVENTS)).open("a") as file:
                file.write(line + "\n")
        else:
            self._events.append(line)

    def _flush_events(self) -> None:
        # Object stores cannot append: the lines are put together when the run ends.
        if self._events:
            self.run.write_text(EVENTS, "\n".join(self._events) + "\n")

    def _connected(self) -> Any:
        if self._client is None:
            scratch = self.run.path(".dask") if self.run.is_local else None
            self._client = self._stack.enter_context(connect(self.config, scratch))
            if self._client.dashboard_link and self.config.dashboard:
                print(f"Dask dashboard: {self._client.dashboard_link}", flush=True)
        return self._client


def _work(
    function: Callable[..., StageReport], task: Task, arguments: tuple[Any, ...], after: list[Any]
) -> Finished:
    """Run one stage task on a worker; `after` only makes Dask wait for what it names."""
    started = time.monotonic()
    report = function(task, *arguments)
    return Finished(report, time.monotonic() - started)
