"""What a run will do, in words: before it starts, and for `--dry-run` without starting it."""

from __future__ import annotations

import tempfile

import torch

from pipeline.storage import Directory
from tcjepa.config import TrainConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.plan import samples_per_epoch
from tcjepa.masks import sample_masks
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import open_text_encoder
from tcjepa.train import checkpoint
from tcjepa.train.optim import Schedule, make_schedule
from tcjepa.train.run import Run


def describe_plan(config: TrainConfig) -> str:
    """Return the plan of a run; reads the shard index, trains nothing and leaves nothing behind.

    The index is mapped in a temporary folder, whatever `data.cache_dir` says. Raises `ConfigError`
    as a run would: missing shards, masks that do not fit, no step left.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = config.data.model_copy(update={"cache_dir": folder})
        samples = len(ShardIndex.open(data))
    epoch = samples_per_epoch(samples, config.data.tail, config.train.batch)
    schedule = make_schedule(config.train, epoch)
    text = open_text_encoder(config.text) if config.model.text else None
    with torch.device("meta"):
        model = TCJEPA(config.model, text.width if text else None)
    masks = sample_masks(config.masks, model.encoder.shape.grid, 1, seed=0, step=0)
    found = checkpoint.names(Directory(config.run))
    return "\n".join(
        [
            *_lines(config, schedule, samples, model),
            f"tokens    {masks.context.shape[1]} context, {masks.targets.shape[1]} targets of "
            f"{masks.targets.shape[2]}, of {model.encoder.shape.patches} patches",
            f"state     {f'resumes from {found[-1]}' if found else 'starts new'}",
        ]
    )


def summary(run: Run) -> str:
    """Return what a run that is about to train will do."""
    begins = f"resumes after step {run.step}" if run.step else "starts new"
    device = f"{run.world.device.type} x {run.world.size}, {'bf16' if run.is_bf16 else 'fp32'}"
    if run.world.size > 1:
        device += f", {'sharded (fsdp2)' if run.parallel.is_sharded else 'replicated (ddp)'}"
    elif run.config.train.parallel == "fsdp2":
        device += ", train.parallel=fsdp2 has nothing to shard on one rank"
    threads = f", {torch.get_num_threads()} threads" if run.world.device.type == "cpu" else ""
    lines = _lines(run.config, run.schedule, len(run.index), run.model)
    return "\n".join([*lines, f"device    {device}{threads}", f"state     {begins}"])


def _lines(config: TrainConfig, schedule: Schedule, samples: int, model: TCJEPA) -> list[str]:
    train = config.train
    scaled = f"scaled by {train.batch}/2048" if train.scale_lr else "as given, not scaled"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    objective = "TC-JEPA" if config.model.text else "I-JEPA (model.text is null)"
    epochs = schedule.steps * train.batch / samples
    return [
        f"run       {config.run}",
        f"model     {objective}: {config.model.encoder}, {encoder / 1e6:.1f} M parameters in the "
        f"encoder, {trained / 1e6:.1f} M trained",
        f"data      {samples} images of {config.data.shards}, split {config.data.split}",
        f"length    {schedule.steps} steps of {train.batch} images: "
        f"{epochs:.2f} epochs, {schedule.warmup_steps} steps of warm-up",
        f"lr        {schedule.start_lr:g} -> {schedule.lr:g} -> {schedule.final_lr:g} ({scaled})",
    ]


__all__ = ["describe_plan", "summary"]
