"""AdamW and the schedules of I-JEPA, as pure functions of the step.

Steps count from 0. I-JEPA advances its learning rate and weight decay *before* an optimizer step
and its EMA momentum after, so step 0 uses the schedules' value at 1 and the momentum's at 0.
Source: github.com/facebookresearch/ijepa, src/utils/schedulers.py, src/helper.py and src/train.py
(whose `ipe_scale`, 1.0 in every published ImageNet-1k config, is left out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pipeline.settings import ConfigError
from tcjepa.train.config import PUBLISHED_BATCH, PUBLISHED_WARMUP_SHARE, TrainSection


@dataclass(frozen=True)
class StepValues:
    """What the schedules give one optimizer step."""

    lr: float
    weight_decay: float
    ema: float


@dataclass(frozen=True)
class Schedule:
    """The run's length and its three schedules."""

    steps: int
    warmup_steps: int
    start_lr: float
    lr: float
    final_lr: float
    weight_decay: float
    final_weight_decay: float
    weight_decay_schedule: Literal["cosine", "linear"]
    ema: float
    final_ema: float

    def at(self, step: int) -> StepValues:
        """Return learning rate, weight decay and EMA momentum of optimizer step `step`."""
        return StepValues(
            lr=warmup_cosine(
                step,
                self.steps,
                self.warmup_steps,
                start=self.start_lr,
                peak=self.lr,
                final=self.final_lr,
            ),
            weight_decay=decay(
                step,
                self.steps,
                self.weight_decay,
                self.final_weight_decay,
                self.weight_decay_schedule,
            ),
            ema=momentum(step, self.steps, self.ema, self.final_ema),
        )


def make_schedule(config: TrainSection, samples: int) -> Schedule:
    """Return the schedule of a run over `samples` training images per epoch.

    An epoch is samples / batch steps, as a fraction; lengths in epochs round down, as in
    I-JEPA. Raises `ConfigError` if no step is left or the warm-up fills the run.
    """
    per_epoch = samples / config.batch
    steps = config.steps or int((config.epochs or 0) * per_epoch)
    if steps < 1:
        raise ConfigError(
            f"train.epochs={config.epochs} over {samples} images is less than one step of "
            f"train.batch={config.batch}; lower the batch or raise the epochs"
        )
    if config.warmup_steps is not None:
        warmup = config.warmup_steps
    elif config.warmup_epochs is not None:
        warmup = int(config.warmup_epochs * per_epoch)
    else:
        warmup = int(PUBLISHED_WARMUP_SHARE * steps)
    if warmup >= steps:
        raise ConfigError(
            f"the warm-up ({warmup} steps) fills the whole run ({steps} steps); lower "
            "train.warmup_steps or train.warmup_epochs, or train longer"
        )
    scale = config.batch / PUBLISHED_BATCH if config.scale_lr else 1.0
    return Schedule(
        steps=steps,
        warmup_steps=warmup,
        start_lr=scale * config.start_lr,
        lr=scale * config.lr,
        final_lr=scale * config.final_lr,
        weight_decay=config.weight_decay,
        final_weight_decay=config.final_weight_decay,
        weight_decay_schedule=config.weight_decay_schedule,
        ema=config.ema,
        final_ema=config.final_ema,
    )


def warmup_cosine(
    step: int, steps: int, warmup_steps: int, *, start: float, peak: float, final: float
) -> float:
    """Return I-JEPA's learning rate: linear from `start` to `peak`, then a cosine to `final`."""
    count = step + 1
    if count < warmup_steps:
        return start + count / warmup_steps * (peak - start)
    progress = (count - warmup_steps) / max(1, steps - warmup_steps)
    return max(final, final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def decay(
    step: int, steps: int, start: float, final: float, shape: Literal["cosine", "linear"]
) -> float:
    """Return the weight decay: I-JEPA's cosine, or the straight line of the paper's text."""
    progress = min((step + 1) / steps, 1.0)
    if shape == "linear":
        return start + progress * (final - start)
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def momentum(step: int, steps: int, start: float, final: float) -> float:
    """Return the target encoder's EMA momentum after optimizer step `step`: a straight line."""
    return start + step * (final - start) / steps


def make_optimizer(
    model: nn.Module, config: TrainSection, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters; no decay on biases and norms, as in I-JEPA.

    Neither do the mask token and the null caption decay, being vectors; I-JEPA's mask token does.
    Frozen parameters (the target encoder) are left out. Fused: one pass over each parameter, no
    device sync.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = name.endswith("bias") or parameter.ndim == 1
            (exempt if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.start_lr, betas=config.betas, fused=device.type in ("cpu", "cuda")
    )


def apply(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Set the step's learning rate, and its weight decay on the group that has one."""
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = values.lr
        if number == 0:
            group["weight_decay"] = values.weight_decay
