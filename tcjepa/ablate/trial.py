"""One trial as a process of its own: its config, its lock, its log."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline import gpus
from pipeline.settings import ConfigError, load, to_yaml
from pipeline.storage import Directory
from tcjepa.ablate.study import Trial
from tcjepa.config import TrainConfig, differences
from tcjepa.train import checkpoint
from tcjepa.train.log import STATUS_FILE
from tcjepa.train.run import EVALUATION_FILE

_LOG: Final = "output.log"
_CONFIG: Final = "trial.yaml"
_LOCK: Final = "trial.lock"
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


class TrialBusyError(RuntimeError):
    """Another process is running this trial."""


def is_finished(trial: Trial) -> bool:
    """Return whether the trial has been trained to its last step and evaluated there."""
    folder = Path(trial.folder)
    try:
        evaluated = json.loads((folder / EVALUATION_FILE).read_text())["step"]
        return bool(evaluated == json.loads((folder / STATUS_FILE).read_text())["steps"])
    except (OSError, ValueError, KeyError):
        return False


def has_begun(trial: Trial) -> bool:
    """Return whether the trial has saved anything that a rerun would go on from."""
    return (Path(trial.folder) / checkpoint.FOLDER).exists()


def check_config(trial: Trial, config: TrainConfig) -> None:
    """Raise `ConfigError` if what the trial's folder holds was begun with another config."""
    # A finished trial may have been copied, or kept, without its checkpoints.
    if not (is_finished(trial) or (has_begun(trial) and (Path(trial.folder) / _CONFIG).exists())):
        return
    old = own_config(trial)
    changed = differences(old.model_dump(mode="json"), config.model_dump(mode="json"))
    if old.evaluate != config.evaluate:
        changed.append("evaluate")
    if changed:
        raise ConfigError(
            f"{trial.folder} holds a trial of another config ({'; '.join(changed)}); "
            "set run= to another directory or remove that one"
        )


def write_config(trial: Trial, config: TrainConfig) -> None:
    """Write the config of a trial that is run now; nobody else may be running it.

    Raises `ConfigError` rather than mix it with what another config left in its folder.
    """
    check_config(trial, config)
    Directory(trial.folder).write_text(_CONFIG, to_yaml(config))


def own_config(trial: Trial) -> TrainConfig:
    """Return the config that the trial was run with."""
    return load(TrainConfig, Path(trial.folder) / _CONFIG)


def start(
    trial: Trial,
    threads: int,
    before: Callable[[], bool],
    gpu: str | None = None,
    workers: int | None = None,
) -> subprocess.Popen[bytes] | None:
    """Start a trial; it holds its folder's lock until it ends, however it ends.

    `before` is called once the folder is ours, and returns whether there is anything left to run:
    None if not. The trial sees no GPU but `gpu`, as `CUDA_VISIBLE_DEVICES` names it; None leaves
    that to the caller's. `workers` is what `data.workers=auto` means for it; None: all cores.
    Raises `TrialBusyError` if another process has it: two writers would spoil each other's log.
    """
    folder = Path(trial.folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tcjepa", "pretrain", str(folder / _CONFIG)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment[gpus.VARIABLE] = gpu
    with (folder / _LOG).open("ab") as log, (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrialBusyError(f"{trial.folder} is being run by another process") from error
        if not before():
            return None
        command.append(f"train.threads={threads}")
        if workers is not None and own_config(trial).data.workers == "auto":
            command.append(f"data.workers={workers}")
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=[lock.fileno()],  # the lock lives as long as its last descriptor
            # Safe: between fork and exec it calls prctl alone, which takes no lock.
            preexec_fn=_follow_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )


def last_lines(trial: Trial, count: int = 5) -> str:
    """Return the end of what a trial printed."""
    path = Path(trial.folder) / _LOG
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return " | ".join(lines[-count:]) or f"see {path}"


def _follow_parent() -> None:
    """Have the kernel end this trial when the study is killed: a rerun must find it stopped."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


__all__ = [
    "TrialBusyError",
    "check_config",
    "has_begun",
    "is_finished",
    "last_lines",
    "own_config",
    "start",
    "write_config",
]
