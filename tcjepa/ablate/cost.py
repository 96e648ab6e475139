"""What a study will cost: operations counted from the configs, and time from a few real steps."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.schema import INDEX_FILE
from pipeline.storage import Directory
from tcjepa.ablate.study import StudyConfig, Trial, training_config
from tcjepa.bench.flops import Captions, baseline_flops, flops_per_image, peak_flops
from tcjepa.config import TrainConfig, unread_keys
from tcjepa.data.index import ShardIndex
from tcjepa.data.plan import samples_per_epoch
from tcjepa.model.jepa import TCJEPA
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.loop import optimizer_step
from tcjepa.train.objective import make_model, text_encoder_of
from tcjepa.train.optim import make_schedule
from tcjepa.train.run import Run

_STEPS: Final = 3
#: Sections and keys that a step's time does not depend on: length, chance, weights, selections.
_CHEAP: Final = (
    "run", "evaluate", "data.shards", "data.filter", "data.caption_sampling", "data.noise",
    "data.caption_sources", "data.min_caption_quality", "data.min_caption_agreement",
    "model.text.sparsity_weight", "model.text.consistency_weight", "train.seed", "train.steps",
    "train.epochs", "train.warmup_steps", "train.warmup_epochs", "train.lr",
)  # fmt: skip
_YARDSTICK: Final = "H100"


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
    lengths = _Lengths()
    seconds: dict[str, float] = {}
    alone = 0.0
    for trial in trials:
        config = training_config(study, trial, base)
        kind = _kind(config)
        if kind not in seconds:
            seconds[kind] = _step_seconds(config, study.threads)
        alone += seconds[kind] * lengths.of(config)
    return (
        f"{len(trials)} runs to train, {_span(alone)} of training steps if run one by one, by "
        f"{_STEPS} steps of each of {_kinds(seconds)}; {study.parallel} run at a time"
    )


def operations(study: StudyConfig, base: Path, trials: Sequence[Trial]) -> str:
    """Return a sentence on the operations that the trials' training steps take; runs none of them.

    Of runs whose length is given in epochs the shards must be there, or they are left out.
    """
    lengths = _Lengths()
    per_image: dict[str, float] = {}
    total, unknown = 0.0, 0
    for trial in trials:
        config = training_config(study, trial, base)
        if config.train.steps is None and missing_shards([config]):
            unknown += 1
            continue
        kind = _kind(config)
        if kind not in per_image:
            per_image[kind] = _flops(config)
        total += per_image[kind] * config.train.batch * lengths.of(config)
    text = f"training takes {total:.2g} floating-point operations in {_kinds(per_image)}"
    peak = peak_flops(_YARDSTICK)
    if peak is not None and total / peak >= 60:
        text += f", at least {_span(total / peak)} of an {_YARDSTICK} at its bf16 peak"
    if unknown:
        text += f"; {unknown} runs of so many epochs are left out, for their shards are absent"
    return text


def missing_shards(configs: Sequence[TrainConfig]) -> list[str]:
    """Return the shard directories of configs that hold no index yet."""
    found = dict.fromkeys(config.data.shards for config in configs)
    return [shards for shards in found if not Directory(shards).exists(INDEX_FILE)]


class _Lengths:
    """Steps of runs; the index of each selection of images is read once."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, str, str | None], int] = {}

    def of(self, config: TrainConfig) -> int:
        """Return how many steps a run takes; raises as a run would if its shards are not there."""
        if config.train.steps is not None:
            return config.train.steps
        data = config.data
        key = (data.shards, data.split, data.filter)
        if key not in self._images:
            with tempfile.TemporaryDirectory(prefix="tcjepa-cost-") as folder:
                self._images[key] = len(
                    ShardIndex.open(data.model_copy(update={"cache_dir": folder}))
                )
        epoch = samples_per_epoch(self._images[key], data.tail, config.train.batch)
        return make_schedule(config.train, epoch).steps


def _kind(config: TrainConfig) -> str:
    """Return what decides the time of a run's steps: its config without what does not."""
    data: dict[str, Any] = config.model_dump(mode="json")
    for key in (*_CHEAP, *unread_keys(data)):
        *sections, name = key.split(".")
        owner: Any = data
        for section in sections:
            owner = (owner or {}).get(section)
        if owner:
            owner.pop(name, None)
    return json.dumps(data, sort_keys=True)


def _flops(config: TrainConfig) -> float:
    """Return the operations of a training step per image; captions count as full length."""
    text = text_encoder_of(config)
    captions = None
    if text is not None:
        captions = Captions(config.data.captions_per_image, config.text.max_words)
    with torch.device("meta"):
        model = make_model(config, text)
    if isinstance(model, TCJEPA):
        transformer = getattr(text, "model", None)
        return flops_per_image(model, config.masks, captions, transformer).total
    return baseline_flops(model, captions)


def _step_seconds(config: TrainConfig, threads: int | None) -> float:
    """Return the time of a training step [s], the median of a few."""
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
    return sorted(taken[1:])[_STEPS // 2]


def _kinds(found: Sized) -> str:
    return f"{len(found)} kind{'s' * (len(found) != 1)} of run"


def _span(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


__all__ = ["estimate", "estimate_apart", "missing_shards", "operations"]
