"""Ranks under `torchrun`; a world of one without it.

Gradients are averaged by plain all-reduces after the last micro-batch rather than by wrapping the
model in `DistributedDataParallel`: a parameter that only some steps use (the null caption's token)
needs no special case, gradient accumulation communicates once, and checkpoints carry no wrapper's
names. The price is that communication does not overlap with the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.settings import ConfigError

#: Gradients are reduced in flat buffers of about this size [elements]; few large messages.
BUCKET = 32 * 1024 * 1024


@dataclass(frozen=True)
class World:
    """This process's place among all ranks of the run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means for a rank of this node.

    Raises `ConfigError` if CUDA was asked for by name and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device=cuda, but torch sees no CUDA device; use train.device=cpu, or install a "
            "CUDA build of torch and check `nvidia-smi`"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def start(device: str) -> World:
    """Join the process group that `torchrun` announced in the environment, if it did.

    `device` as for `pick_device`; raises `ConfigError` as it does.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    where = pick_device(device, local_rank)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return World(rank, size, local_rank, local_size, where)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace each gradient by its mean over the ranks; an absent one counts as zero."""
    if world.size == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            _average_bucket(bucket, world)
            bucket = []
    _average_bucket(bucket, world)


def _average_bucket(bucket: Sequence[Tensor], world: World) -> None:
    if not bucket:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    dist.all_reduce(flat)
    flat /= world.size
    for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


def mean(values: Tensor, world: World) -> Tensor:
    """Return the mean of a tensor over the ranks; every rank must call it."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world.size
    return values


def any_rank(flags: Sequence[bool], world: World) -> list[bool]:
    """Return, for each flag, whether it is set on any rank; every rank must call it."""
    if world.size == 1:
        return list(flags)
    votes = torch.tensor([float(flag) for flag in flags], device=world.device)
    dist.all_reduce(votes)
    return [vote > 0 for vote in votes.tolist()]


def wait(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.barrier()
