"""Ranks under `torchrun`, a world of one without it, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.settings import ConfigError

T = TypeVar("T")


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
        # Checkpoints are written from CPU memory, so GPU ranks need a CPU backend too.
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")
    return World(rank, size, local_rank, local_size, where)


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_joined() -> bool:
    """Return whether this process has joined a process group and not left it."""
    return dist.is_initialized()


def mean(values: Tensor, world: World) -> Tensor:
    """Return the mean of a tensor over the ranks; every rank must call it."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world.size
    return values


def total(value: float, world: World) -> Tensor:
    """Return the sum of a number over the ranks as a float64 scalar on the device; no sync."""
    summed = torch.full((), value, dtype=torch.float64, device=world.device)
    if world.size > 1:
        dist.all_reduce(summed)
    return summed


def gather(value: T, world: World) -> list[T]:
    """Return every rank's value on rank 0, in order of rank, and an empty list elsewhere."""
    if world.size == 1:
        return [value]
    everything: list[T | None] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, everything)
    return [item for item in everything or [] if item is not None]


def from_main(value: T, world: World) -> T:
    """Return rank 0's value on every rank; the others' is ignored."""
    shared = [value]
    if world.size > 1:
        dist.broadcast_object_list(shared)
    return shared[0]


def any_rank(flags: Sequence[bool], world: World) -> list[bool]:
    """Return, for each flag, whether it is set on any rank; every rank must call it."""
    if world.size == 1:
        return list(flags)
    votes = torch.tensor([float(flag) for flag in flags], device=world.device)
    dist.all_reduce(votes)
    return [vote > 0 for vote in votes.tolist()]


def largest(value: float, world: World) -> float:
    """Return the largest of the ranks' numbers; every rank must call it."""
    found = torch.tensor(value, dtype=torch.float64, device=world.device)
    if world.size > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def wait(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.barrier()
