"""Run the trials of a study, each in a process of its own; rerunning goes on where it stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.progress import Progress
from pipeline.settings import ConfigError, load, to_yaml
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.config import TrainConfig, differences
from tcjepa.train.run import EVALUATION_FILE

Say = Callable[[str], None]

_POLL_SECONDS = 0.5
_LOG = "output.log"
_CONFIG = "trial.yaml"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def run_trials(study: StudyConfig, base: Path, say: Say) -> list[Trial]:
    """Train and evaluate every trial that is not finished; return those that failed.

    All configs are checked before the first trial starts; raises `ConfigError`. Each trial resumes
    from its own checkpoints, so a killed study loses at most what its running trials had not saved.
    """
    trials = trials_of(study)
    for trial in trials:
        _write_config(study, trial, base)
    waiting = [trial for trial in trials if not is_finished(trial)]
    running: dict[Trial, subprocess.Popen[bytes]] = {}
    failed: list[Trial] = []
    with Progress("study", len(trials), "runs", every=60) as progress:
        progress.skip(len(trials) - len(waiting))
        try:
            while waiting or running:
                while waiting and len(running) < study.parallel:
                    trial = waiting.pop(0)
                    running[trial] = _start(study, trial)
                time.sleep(_POLL_SECONDS)
                for trial in [t for t, process in running.items() if process.poll() is not None]:
                    lost = running.pop(trial).returncode != 0 or not is_finished(trial)
                    if lost:
                        failed.append(trial)
                        say(f"{trial.arm.name}, seed {trial.seed} failed: {_last_lines(trial)}")
                    progress.advance(1, int(lost), note=f"{trial.arm.name}, seed {trial.seed}")
        finally:
            _stop(running.values())
    return failed


def is_finished(trial: Trial) -> bool:
    """Return whether the trial has been trained and evaluated."""
    return (Path(trial.folder) / EVALUATION_FILE).exists()


def _write_config(study: StudyConfig, trial: Trial, base: Path) -> None:
    """Write the trial's config; refuse to mix it with what another config left in its folder."""
    path = Path(trial.folder) / _CONFIG
    config = training_config(study, trial, base)
    if path.exists():
        old = load(TrainConfig, path)
        changed = differences(old.model_dump(mode="json"), config.model_dump(mode="json"))
        if old.evaluate != config.evaluate:
            changed.append("evaluate")
        if changed:
            raise ConfigError(
                f"{trial.folder} holds a trial of another config ({'; '.join(changed)}); "
                "set run= to another directory or remove that one"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(config))


def _start(study: StudyConfig, trial: Trial) -> subprocess.Popen[bytes]:
    threads = study.threads or max(1, (os.cpu_count() or 1) // study.parallel)
    folder = Path(trial.folder)
    command = [sys.executable, "-m", "tcjepa", "pretrain", str(folder / _CONFIG)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / _LOG).open("ab") as log:
        return subprocess.Popen(
            [*command, f"train.threads={threads}"],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            # Safe: this process has no threads that could hold a lock across the fork.
            preexec_fn=_follow_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )


def _follow_parent() -> None:
    """Have the kernel end this trial when the study is killed: a rerun must find it stopped."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _stop(processes: object) -> None:
    """End what still runs; SIGTERM makes a trial save before it exits."""
    alive = [p for p in list(processes) if p.poll() is None]  # type: ignore[call-overload]
    for process in alive:
        process.terminate()
    for process in alive:
        process.wait()


def _last_lines(trial: Trial, count: int = 5) -> str:
    path = Path(trial.folder) / _LOG
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return " | ".join(lines[-count:]) or f"see {path}"
