"""What a run will do, in words: before it starts, and for `--dry-run` without starting it."""

from __future__ import annotations

import tempfile
from typing import cast

import torch
from torch import Tensor

from pipeline.storage import Directory
from tcjepa.config import TrainConfig, method
from tcjepa.data.captioned import check_captioned
from tcjepa.data.index import ShardIndex
from tcjepa.data.plan import samples_per_epoch
from tcjepa.evaluation import check_evaluable
from tcjepa.masks import sample_masks
from tcjepa.model.learner import Learner
from tcjepa.model.supervised import Supervised
from tcjepa.train import checkpoint
from tcjepa.train.labels import Labels
from tcjepa.train.objective import make_model, text_encoder_of
from tcjepa.train.optim import Schedule, make_schedule
from tcjepa.train.run import Run, Say, refuse_other_config


def describe_plan(config: TrainConfig, say: Say, fresh: bool = False) -> str:
    """Return the plan of a run; reads the shard index, trains nothing and leaves nothing behind.

    The index is mapped in a temporary folder, whatever `data.cache_dir` says. Raises `ConfigError`
    as a run would: a checkpoint of another config, missing shards, no caption to read, no labels to
    probe, masks that do not fit, no step left. `fresh` plans to set an earlier run's files aside;
    damaged checkpoints are reported through `say`.
    """
    found = None if fresh else checkpoint.latest(Directory(config.run), say, whole=False)
    if found is not None:
        refuse_other_config(found, config)
    with tempfile.TemporaryDirectory() as folder:
        data = config.data.model_copy(update={"cache_dir": folder})
        index = ShardIndex.open(data)
        if config.reads_captions:
            check_captioned(index, data)
        if config.train.evaluate_after or config.train.probe_every:
            check_evaluable(config.evaluate, data)
        samples, classes = len(index), None
        if config.train.objective == "supervised":
            classes = Labels(index, config.train.labels).counts
    epoch = samples_per_epoch(samples, config.data.tail, config.train.batch)
    schedule = make_schedule(config.train, epoch)
    text = text_encoder_of(config)
    with torch.device("meta"):
        model = make_model(config, text, classes)
    return "\n".join(
        [
            *_lines(config, schedule, samples, model),
            _tokens(config, model),
            f"state     {_state(found.step if found else 0, schedule.steps)}",
        ]
    )


def summary(run: Run) -> str:
    """Return what a run that is about to train will do."""
    device = f"{run.world.device.type} x {run.world.size}, {run.precision}"
    if run.world.size > 1:
        device += f", {'sharded (fsdp2)' if run.parallel.is_sharded else 'replicated (ddp)'}"
    elif run.config.train.parallel == "fsdp2":
        device += ", train.parallel=fsdp2 has nothing to shard on one rank"
    threads = f", {torch.get_num_threads()} threads" if run.world.device.type == "cpu" else ""
    lines = _lines(run.config, run.schedule, len(run.index), run.model)
    state = _state(run.step, run.schedule.steps)
    return "\n".join([*lines, f"device    {device}{threads}", f"state     {state}"])


def _state(step: int, steps: int) -> str:
    if step >= steps:
        return f"is done: all {steps} steps. --fresh starts over"
    return f"resumes after step {step}" if step else "starts new"


def _tokens(config: TrainConfig, model: Learner) -> str:
    patches = model.encoder.shape.patches
    if config.train.objective != "jepa":
        return f"tokens    all {patches} patches"
    masks = sample_masks(config.masks, model.encoder.shape.grid, 1, seed=0, step=0)
    return (
        f"tokens    {masks.context.shape[1]} context, {masks.targets.shape[1]} targets of "
        f"{masks.targets.shape[2]}, of {patches} patches"
    )


def _lines(config: TrainConfig, schedule: Schedule, samples: int, model: Learner) -> list[str]:
    train = config.train
    scaled = f"scaled by {train.batch}/2048" if train.scale_lr else "as given, not scaled"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    objective = _named(config, model)
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


def _named(config: TrainConfig, model: Learner) -> str:
    """Return what is trained, in words."""
    name = method(config.model_dump(mode="json"))
    if isinstance(model, Supervised):
        heads = zip(model.labels, model.heads.children(), strict=True)
        classes = ", ".join(f"{label} ({len(cast(Tensor, head.bias))})" for label, head in heads)
        return f"baseline, {name}, classes of {classes}"
    notes = {"I-JEPA": " (model.text is null)", "contrastive": " baseline (as CLIP)"}
    return name + notes.get(name, "")


__all__ = ["describe_plan", "summary"]
