"""Run the trials of a study, each in a process of its own; rerunning goes on where it stopped."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline import gpus
from pipeline.progress import Progress
from pipeline.settings import ConfigError
from tcjepa.ablate import kept, provenance
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.ablate.trial import (
    TrialBusyError,
    check_config,
    is_finished,
    last_lines,
    start,
    write_config,
)
from tcjepa.config import TrainConfig
from tcjepa.data.config import workers_for

Say = Callable[[str], None]
Problem = str | TrialBusyError | None
"""What went wrong with a trial, or who has it; None if nothing did."""

_POLL_SECONDS = 0.5
#: Between looks at a trial that another process runs.
_BUSY_SECONDS = 10.0
#: A trial that fails is run once more: a worker may have been taken away, a disk full for a moment.
ATTEMPTS = 2


class Place(Protocol):
    """Where trials run, some at a time."""

    @property
    def room(self) -> int:
        """How many more trials may start now."""

    def start(self, trial: Trial, before: Callable[[], bool]) -> None:
        """Begin a trial; `before` is called once its folder is ours: is it still to be run?"""

    def ended(self) -> list[tuple[Trial, Problem]]:
        """Return the trials that ended since the last call, with what went wrong."""

    def stop(self) -> None:
        """End what still runs; a trial saves before it exits."""


def run_trials(
    study: StudyConfig, base: Path, say: Say, part: tuple[int, int] | None = None
) -> list[Trial]:
    """Train and evaluate every trial that is not finished; return those that failed twice.

    `part` (i, n), i from 1, takes the i-th of n shares of the trials, for one job of an array. All
    configs are checked before the first trial starts, and that the data has what the evaluation
    asks for; raises `ConfigError`. Each trial resumes from its own checkpoints, so a killed study
    loses at most what its running trials had not saved. What others run in the same directory is
    waited for, and checked when its turn comes.
    """
    from tcjepa.evaluation import check_evaluable

    trials = chosen(study, part)
    configs = {trial: training_config(study, trial, base) for trial in trials_of(study)}
    for trial in trials:
        check_config(trial, configs[trial])
    made_by: dict[tuple[str, str], dict[str, str]] = {}
    asked: set[tuple[str, str]] = set()
    shares, begin = kept.KeptShares(), dict[Trial, Callable[[], bool]]()
    for trial in trials:
        config = configs[trial]
        source = (config.data.shards, config.evaluate.model_dump_json())
        if source not in made_by:
            made_by[source] = provenance.provenance(config)
        if is_finished(trial):
            provenance.check_data(trial, made_by[source])
            provenance.seal(trial)  # a study that was killed may not have come to it
        else:
            provenance.check_begun(trial, made_by[source])
            if source not in asked:
                check_evaluable(config.evaluate, config.data)
                asked.add(source)
            begin[trial] = partial(_begin, trial, config, made_by[source], shares.of(config))
    place = _place(study)
    try:
        return _run(place, trials, begin, say)
    finally:
        place.stop()


def _begin(
    trial: Trial, config: TrainConfig, made_by: dict[str, str], shares: dict[str, float]
) -> bool:
    """Write what a trial is run with into its folder, which is ours; return if it is to be run.

    Another process may have begun or finished it since the study was checked. Raises `ConfigError`
    if that was with another config, code or data.
    """
    if is_finished(trial):
        check_config(trial, config)
        provenance.check_data(trial, made_by)
        return False
    provenance.check_begun(trial, made_by)
    write_config(trial, config)
    provenance.write(trial, made_by)
    kept.write(trial, shares)
    return True


def chosen(study: StudyConfig, part: tuple[int, int] | None) -> list[Trial]:
    """Return the trials of a part (i, n), i from 1; all of them for None.

    Raises `ConfigError` for a part that does not exist.
    """
    if part is None:
        return trials_of(study)
    number, count = part
    if not 1 <= number <= count:
        raise ConfigError(f"--part {number}/{count}: parts are 1/{count} to {count}/{count}")
    return trials_of(study)[number - 1 :: count]


def _run(
    place: Place, trials: list[Trial], begin: dict[Trial, Callable[[], bool]], say: Say
) -> list[Trial]:
    waiting = dict.fromkeys(begin, 0.0)  # trial -> when it may start [s of the monotonic clock]
    running: set[Trial] = set()
    tried: Counter[Trial] = Counter()
    told: set[Trial] = set()
    failed: list[Trial] = []
    with Progress("study", len(trials), "runs", every=60) as progress:
        progress.skip(len(trials) - len(waiting))
        while waiting or running:
            now = time.monotonic()
            for trial in [trial for trial, when in waiting.items() if when <= now]:
                if not place.room:
                    break
                del waiting[trial]
                running.add(trial)
                place.start(trial, begin[trial])
            time.sleep(_POLL_SECONDS)
            for trial, problem in place.ended():
                running.remove(trial)
                name = f"{trial.arm.name}, seed {trial.seed}"
                if isinstance(problem, TrialBusyError):  # nobody's failure
                    if trial not in told:
                        say(f"{name} is waited for: {problem}")
                        told.add(trial)
                    waiting[trial] = time.monotonic() + _BUSY_SECONDS
                    continue
                tried[trial] += 1
                if problem is None and is_finished(trial):
                    progress.advance(1, note=name)
                elif tried[trial] < ATTEMPTS:
                    say(f"{name} failed and is run again: {problem or last_lines(trial)}")
                    waiting[trial] = 0.0
                else:
                    say(f"{name} failed: {problem or last_lines(trial)}")
                    failed.append(trial)
                    progress.advance(1, 1, note=name)
    return failed


def _place(study: StudyConfig) -> Place:
    if study.scheduler is None:
        return Processes(study)
    from tcjepa.ablate.dask_workers import DaskWorkers

    return DaskWorkers(study)


class Processes:
    """This machine: `study.parallel` processes at a time, spread over its GPUs."""

    def __init__(self, study: StudyConfig) -> None:
        self._most = study.parallel
        self._threads = study.threads or max(1, (os.cpu_count() or 1) // study.parallel)
        self._running: dict[Trial, subprocess.Popen[bytes]] = {}
        self._gpus, self._gpu_of = gpus.visible(), dict[Trial, str | None]()
        self._not_run: list[tuple[Trial, Problem]] = []

    @property
    def room(self) -> int:
        """How many more trials may start now."""
        return self._most - len(self._running)

    def start(self, trial: Trial, before: Callable[[], bool]) -> None:
        """Begin a trial."""
        gpu = gpus.least_used(self._gpus, (self._gpu_of[other] for other in self._running))
        try:
            process = start(trial, self._threads, before, gpu, workers_for(self._threads))
        except TrialBusyError as error:
            self._not_run.append((trial, error))
            return
        if process is None:
            self._not_run.append((trial, None))
        else:
            self._running[trial], self._gpu_of[trial] = process, gpu

    def ended(self) -> list[tuple[Trial, Problem]]:
        """Return the trials that ended since the last call, with what went wrong."""
        over = [trial for trial, process in self._running.items() if process.poll() is not None]
        found, self._not_run = self._not_run, []
        for trial in over:
            found.append((trial, problem_of(trial, self._running.pop(trial).returncode)))
        return found

    def stop(self) -> None:
        """End what still runs; SIGTERM makes a trial save before it exits."""
        _end(list(self._running.values()))


def problem_of(trial: Trial, code: int) -> str | None:
    """Return what went wrong with a trial whose process ended; note what it made if nothing did."""
    if code != 0:
        return last_lines(trial)
    provenance.seal(trial)
    return None


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    for process in alive:
        process.wait()


__all__ = ["ATTEMPTS", "Place", "Problem", "Processes", "chosen", "problem_of", "run_trials"]
