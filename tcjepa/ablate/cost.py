"""What a study will cost, from a few steps of each kind of run it has."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import torch

from tcjepa.ablate.study import StudyConfig, Trial, training_config
from tcjepa.config import TrainConfig
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.loop import optimizer_step
from tcjepa.train.run import Run

_STEPS: Final = 3
#: Sections and keys that a step's time does not depend on.
_CHEAP: Final = ("run", "evaluate")
_CHEAP_TRAIN: Final = ("seed", "steps", "epochs", "warmup_steps", "warmup_epochs", "lr")


def estimate_apart(study: StudyConfig, base: Path, trials: Sequence[Trial]) -> str:
    """Return `estimate`'s sentence, found in a process of its own.

    A GPU's memory, once reserved, is given back only when the process ends; the trials need it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(estimate, study, base, trials).result()


def estimate(study: StudyConfig, base: Path, trials: Sequence[Trial]) -> str:
    """Return a sentence on how long the trials will train; takes a few steps of each kind of run.

    Loading and evaluation come on top: on a machine that keeps up, the former costs nothing.
    """
    kinds: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for trial in trials:
        config = training_config(study, trial, base)
        kind = _kind(config)
        kinds[kind] += 1
        if kind not in seconds:
            seconds[kind] = _seconds(config, study.threads)
    alone = sum(seconds[kind] * count for kind, count in kinds.items())
    return (
        f"{len(trials)} runs to train, {_span(alone)} of training steps if run one by one, by "
        f"{_STEPS} steps of each of {len(kinds)} kinds of run; {study.parallel} run at a time"
    )


def _kind(config: TrainConfig) -> str:
    """Return what decides a run's time: its config without what does not."""
    data = config.model_dump(mode="json", exclude=set(_CHEAP))
    data["data"].pop("noise")
    for key in _CHEAP_TRAIN:
        data["train"].pop(key, None)
    return json.dumps(data, sort_keys=True) + str(config.train.steps or config.train.epochs)


def _seconds(config: TrainConfig, threads: int | None) -> float:
    """Return the time of a run's training steps [s], from the median of a few."""
    world = World(0, 1, 0, 1, pick_device(config.train.device))
    with tempfile.TemporaryDirectory(prefix="tcjepa-cost-") as folder:
        train = config.train.model_copy(update={"threads": threads or config.train.threads})
        data = config.data.model_copy(update={"workers": 0})
        run = Run(
            config.model_copy(update={"run": folder, "train": train, "data": data}),
            world,
            lambda _: None,
        )
        batch = next(run.batches())
        taken = []
        for _ in range(1 + _STEPS):  # the first one allocates
            began = time.monotonic()
            optimizer_step(run, batch)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            taken.append(time.monotonic() - began)
    return sorted(taken[1:])[_STEPS // 2] * run.schedule.steps


def _span(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


__all__ = ["estimate", "estimate_apart"]
