"""What `events.jsonl` says: time, throughput and errors by stage, and how long is left."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine import EVENTS
from pipeline.storage import Directory

#: What a stage's work is counted in: the first of these counts that it reports.
_UNITS = ("rows", "images", "captions", "fetched", "samples", "pairs")


@dataclass
class StageActivity:
    """All events of one stage. Times are seconds since the epoch, spans in seconds."""

    stage: str
    tasks: int = 0
    seconds: float = 0.0
    bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: int = 0
    intervals: list[tuple[float, float]] = field(default_factory=list)

    @property
    def span(self) -> float:
        """Return the seconds in which at least one task of the stage ran."""
        return sum(end - start for start, end in merged(self.intervals))

    @property
    def unit(self) -> str:
        """Return what the stage's throughput is counted in; empty if it counts nothing."""
        return next((unit for unit in _UNITS if unit in self.counts), "")

    @property
    def done(self) -> int:
        """Return how many units were done, over all tries."""
        return self.counts[self.unit] if self.unit else 0

    @property
    def retries(self) -> int:
        """Return the further tries inside tasks (fetches, requests), where a stage reports them."""
        figures = sum(v for name, v in self.figures.items() if name.endswith("retries"))
        return self.counts["retries"] + round(figures)

    @property
    def rate(self) -> float:
        """Return units per second of span; 0 where nothing was timed."""
        return self.done / self.span if self.span else 0.0


@dataclass
class Activity:
    """All events of a run, by stage in order of first appearance."""

    stages: dict[str, StageActivity] = field(default_factory=dict)
    failing: dict[tuple[str, str], str] = field(default_factory=dict)  # (stage, part) -> error
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)  # failed ones
    first: float | None = None
    last: float | None = None

    @property
    def span(self) -> float:
        """Return the seconds in which at least one task ran: pauses between tries do not count."""
        intervals = [each for stage in self.stages.values() for each in stage.intervals]
        return sum(end - start for start, end in merged(intervals))

    @property
    def seconds(self) -> float:
        """Return the seconds of all tasks, summed over workers."""
        return sum(stage.seconds for stage in self.stages.values())


def read_activity(run: Directory) -> Activity:
    """Return what the run's events say so far; a line cut short by a kill is passed over."""
    activity = Activity()
    for event in _events(run):
        stage = activity.stages.setdefault(event["stage"], StageActivity(event["stage"]))
        end = float(event["time"])
        start = end - float(event["seconds"])
        key = event["stage"], event["part"]
        if event["error"]:
            stage.errors += 1
            activity.failing[key] = event["error"]
            activity.tries[key] += 1
            continue
        activity.failing.pop(key, None)
        stage.tasks += 1
        stage.seconds += end - start
        stage.bytes += int(event["bytes"])
        stage.counts.update(event["counts"])
        for name, value in (event.get("figures") or {}).items():
            stage.figures[name] += value
        _remember(stage.intervals, start, end)
        activity.first = start if activity.first is None else min(activity.first, start)
        activity.last = end if activity.last is None else max(activity.last, end)
    return activity


def seconds_left(activity: Activity, waiting: dict[str, int]) -> float | None:
    """Return the seconds until the `waiting` tasks (by stage) are done, at the pace so far.

    Each waiting task takes as long as those of its stage did, as many running at once as did over
    the whole run. None while no stage that is waiting has an event to go by; stages without events
    count nothing, so the result is a lower bound until each stage has begun.
    """
    known = {name: count for name, count in waiting.items() if _tasks(activity, name) and count}
    if not known or not activity.span:
        return None
    at_once = max(activity.seconds / activity.span, 1e-9)
    work = sum(
        count * activity.stages[name].seconds / activity.stages[name].tasks
        for name, count in known.items()
    )
    return work / at_once


def merged(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return intervals that cover the same times without overlapping, in order."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], end)
        else:
            result.append((start, end))
    return result


def _tasks(activity: Activity, name: str) -> int:
    stage = activity.stages.get(name)
    return stage.tasks if stage else 0


def _remember(intervals: list[tuple[float, float]], start: float, end: float) -> None:
    """Add an interval to those of its stage; neighbours are joined once there are many."""
    intervals.append((start, end))
    if len(intervals) > 20_000:
        intervals[:] = merged(intervals)


def _events(run: Directory) -> Iterator[dict[str, Any]]:
    if not run.exists(EVENTS):
        return
    with run.fs.open(run.path(EVENTS), "rb") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:  # the last line of a killed run may be cut short
                continue
            if isinstance(event, dict) and {"time", "stage", "part"} <= event.keys():
                yield event


__all__ = ["Activity", "StageActivity", "merged", "read_activity", "seconds_left"]
