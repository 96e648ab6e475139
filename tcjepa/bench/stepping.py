"""The model step: forward and backward of TC-JEPA against I-JEPA from the same code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

import tcjepa
from pipeline.settings import load
from pipeline.timing import Bench, Case, measure
from tcjepa.config import TrainConfig
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.inputs import Inputs
from tcjepa.train.run import Run

#: Dense bf16 peaks by name as torch gives it, from NVIDIA's data sheets [FLOP/s]. The first name
#: that is a part of the device's wins.
BF16_PEAKS: Final = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)
_DEMO, _PUBLISHED = "scenes_tiny", "vit_b16"
_CPU_STEPS, _GPU_STEPS = 3, 20
_GPU_BATCH = 128


def bench_demo(shards: Path, batch: int | None, rounds: int) -> Bench:
    """Compare the steps at the demo's config; `batch` [images] replaces the config's."""
    overrides = [] if batch is None else [f"train.batch={batch}"]
    steps = _CPU_STEPS if batch is None else 1
    # Threads as the environment says, so that a bench can be kept to one core.
    overrides.append(f"train.threads={torch.get_num_threads()}")
    cases = _cases(_DEMO, shards, overrides, steps)
    return measure("model step, demo config", "images/s", cases, rounds, baseline="I-JEPA")


def bench_published(shards: Path, rounds: int) -> Bench:
    """Compare the steps of ViT-B/16 at 224 px in bf16, compiled; needs CUDA.

    The text encoder is `hashed` at the width of t5-base, and its time does not count.
    """
    overrides = [
        "text.encoder=hashed",
        "text.width=768",
        f"train.batch={_GPU_BATCH}",
        "train.precision=bf16",
    ]
    cases = _cases(_PUBLISHED, shards, overrides, _GPU_STEPS)
    name = "model step, ViT-B/16 at 224 px in bf16"
    peak = peak_flops(torch.cuda.get_device_name())
    return measure(name, "images/s", cases, rounds, baseline="I-JEPA", peak_flops=peak)


def peak_flops(device: str) -> float | None:
    """Return a GPU's dense bf16 peak [FLOP/s] by its name; None where it is not listed."""
    return next((peak for name, peak in BF16_PEAKS if name in device), None)


def _cases(config: str, shards: Path, overrides: list[str], steps: int) -> list[Case]:
    return [
        _case("TC-JEPA", _run(config, shards, overrides), steps),
        _case("I-JEPA", _run(config, shards, [*overrides, "model.text=null"]), steps),
    ]


def _run(config: str, shards: Path, overrides: list[str]) -> Run:
    path = Path(tcjepa.__file__).parent / "configs" / f"{config}.yaml"
    own = [
        f"run={shards.parent / 'run'}",
        f"data.shards={shards}",
        f"data.cache_dir={shards.parent / 'cache'}",
        "data.workers=0",
    ]
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=pick_device("auto"))
    return Run(load(TrainConfig, path, [*own, *overrides]), world, print)


def _case(name: str, run: Run, steps: int) -> Case:
    run.model.train()
    inputs, _ = next(run.inputs.micro_batches(next(iter(run.batches())), 0))
    # Not through `__call__`, which a compiled model would answer: its operations are not counted.
    with FlopCounterMode(display=False) as counter:
        _step(run, inputs, run.model.forward)
    images = len(inputs.images)

    def steps_of() -> int:
        for _ in range(steps):
            _step(run, inputs, run.model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return steps * images

    return Case(name, steps_of, counter.get_total_flops() / images)


def _step(run: Run, inputs: Inputs, model: Callable[..., Any]) -> None:
    """Do the forward and backward pass that training does."""
    run.optimizer.zero_grad(set_to_none=True)
    scale = run.regularizer_scale(0)
    with run.autocast():
        output = model(inputs.images, inputs.masks, inputs.text, scale)
    output.loss.backward()
