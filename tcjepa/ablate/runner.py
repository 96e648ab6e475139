"""Run the trials of a study, each in a process of its own; rerunning goes on where it stopped."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline import gpus
from pipeline.progress import Progress
from pipeline.settings import ConfigError
from tcjepa.ablate import kept, provenance
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.ablate.trial import TrialBusyError, is_finished, last_lines, start, write_config

Say = Callable[[str], None]

_POLL_SECONDS = 0.5
#: A trial that fails is run once more: a worker may have been taken away, a disk full for a moment.
ATTEMPTS = 2


class Place(Protocol):
    """Where trials run, some at a time."""

    @property
    def room(self) -> int:
        """How many more trials may start now."""

    def start(self, trial: Trial, before: Callable[[], None]) -> None:
        """Begin a trial; `before` is called once its folder is ours."""

    def ended(self) -> list[tuple[Trial, str | None]]:
        """Return the trials that ended since the last call, with what went wrong or None."""

    def stop(self) -> None:
        """End what still runs; a trial saves before it exits."""


def run_trials(
    study: StudyConfig, base: Path, say: Say, part: tuple[int, int] | None = None
) -> list[Trial]:
    """Train and evaluate every trial that is not finished; return those that failed twice.

    `part` (i, n), i from 1, takes the i-th of n shares of the trials, for one job of an array. All
    configs are checked before the first trial starts; raises `ConfigError`. Each trial resumes from
    its own checkpoints, so a killed study loses at most what its running trials had not saved.
    """
    trials = chosen(study, part)
    for trial in trials_of(study):
        training_config(study, trial, base)
    configs = {trial: write_config(study, trial, base) for trial in trials}
    waiting = [trial for trial in trials if not is_finished(trial)]
    by_shards: dict[tuple[str, str | None], dict[str, str]] = {}
    shares, begin = kept.KeptShares(), dict[Trial, Callable[[], None]]()
    for trial in trials:
        config = configs[trial]
        shards = (config.data.shards, config.evaluate.shards)
        if shards not in by_shards:
            by_shards[shards] = provenance.provenance(config)
        if trial in waiting:
            provenance.check_begun(trial, by_shards[shards])
            begin[trial] = partial(provenance.write, trial, by_shards[shards])
            kept.write(trial, shares.of(config))
        else:
            provenance.check_data(trial, by_shards[shards])
    place = _place(study)
    try:
        return _run(place, trials, begin, say)
    finally:
        place.stop()


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
    place: Place, trials: list[Trial], begin: dict[Trial, Callable[[], None]], say: Say
) -> list[Trial]:
    waiting = list(begin)
    tried: dict[Trial, int] = {}
    failed: list[Trial] = []
    with Progress("study", len(trials), "runs", every=60) as progress:
        progress.skip(len(trials) - len(waiting))
        while waiting or tried:
            while waiting and place.room:
                trial = waiting.pop(0)
                tried[trial] = tried.get(trial, 0) + 1
                place.start(trial, begin[trial])
            time.sleep(_POLL_SECONDS)
            for trial, problem in place.ended():
                name = f"{trial.arm.name}, seed {trial.seed}"
                if problem is None and is_finished(trial):
                    progress.advance(1, note=name)
                elif tried[trial] < ATTEMPTS:
                    say(f"{name} failed and is run again: {problem or last_lines(trial)}")
                    waiting.append(trial)
                    continue
                else:
                    say(f"{name} failed: {problem or last_lines(trial)}")
                    failed.append(trial)
                    progress.advance(1, 1, note=name)
                del tried[trial]
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
        self._refused: list[tuple[Trial, str | None]] = []

    @property
    def room(self) -> int:
        """How many more trials may start now."""
        return self._most - len(self._running)

    def start(self, trial: Trial, before: Callable[[], None]) -> None:
        """Begin a trial."""
        gpu = gpus.least_used(self._gpus, (self._gpu_of[other] for other in self._running))
        try:
            self._running[trial] = start(trial, self._threads, before, gpu)
            self._gpu_of[trial] = gpu
        except TrialBusyError as error:
            self._refused.append((trial, str(error)))

    def ended(self) -> list[tuple[Trial, str | None]]:
        """Return the trials that ended since the last call, with what went wrong or None."""
        over = [trial for trial, process in self._running.items() if process.poll() is not None]
        found, self._refused = self._refused, []
        for trial in over:
            code = self._running.pop(trial).returncode
            found.append((trial, None if code == 0 else last_lines(trial)))
        return found

    def stop(self) -> None:
        """End what still runs; SIGTERM makes a trial save before it exits."""
        _end(list(self._running.values()))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    for process in alive:
        process.wait()


__all__ = ["ATTEMPTS", "Place", "Processes", "chosen", "run_trials"]
