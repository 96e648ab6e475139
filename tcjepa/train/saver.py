"""Saving while training goes on: a snapshot in CPU memory, written by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.storage import Directory
from tcjepa.train import checkpoint, sharded
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.config import TrainSection
from tcjepa.train.distributed import World


class SaveError(RuntimeError):
    """A checkpoint could not be written; the message says which and why."""


class Saver:
    """Writes a run's checkpoints; every rank has one and calls it at the same steps.

    With `train.async_save` a checkpoint is written in the background, and a failure raises
    `SaveError` at the next `check`, `save` or `close`.
    """

    def __init__(
        self, run: Directory, config: TrainSection, world: World, is_sharded: bool
    ) -> None:
        self._run, self._config, self._world = run, config, world
        self._is_sharded = is_sharded
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failed_step = 0
        self._group: Any = None
        self._mesh: Any = None
        if is_sharded:
            from torch.distributed.device_mesh import init_device_mesh

            # Its own group: the writing thread talks while the training loop does.
            self._group = dist.new_group(backend="gloo")
            self._mesh = init_device_mesh("cpu", (world.size,))

    def save(
        self, described: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Save the state of `model` and `optimizer`; `described` is the checkpoint without them.

        Waits for a checkpoint that is still being written: there is never more than one writer.
        """
        self.close()
        if self._is_sharded:
            flat = {
                key: self._copied(value)
                for key, value in sharded.flat_state(model, optimizer).items()
            }
            names = sharded.parameter_names(model, optimizer)
            self._start(described.step, lambda: self._write_sharded(described, flat, names))
        elif self._world.is_main:
            # Without a thread nothing changes while it is written, so nothing need be copied.
            copied = self._copied if self._config.async_save else _as_is
            whole = replace(
                described,
                model=_mapped(model.state_dict(), copied),
                optimizer=_mapped(optimizer.state_dict(), copied),
            )
            keep, keep_every = self._config.keep_checkpoints, self._config.keep_every_steps
            self._start(described.step, lambda: whole.save(self._run, keep, keep_every))

    def check(self) -> None:
        """Raise `SaveError` if a checkpoint could not be written since the last call."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise SaveError(
                f"the checkpoint of step {self._failed_step} could not be written: {failure}. "
                "Earlier ones are untouched; make room or fix the disk, and run the same command"
            ) from failure

    def close(self) -> None:
        """Wait until everything is written; raises `SaveError` as `check` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _start(self, step: int, job: Callable[[], object]) -> None:
        def run() -> None:
            try:
                if self._world.device.type == "cuda":
                    # Of each thread its own; else writing would begin a context on the first GPU.
                    torch.cuda.set_device(self._world.device)
                job()
            except Exception as error:
                self._failure, self._failed_step = error, step

        if not self._config.async_save:
            run()
            self.check()
            return
        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    def _write_sharded(self, found: Checkpoint, flat: sharded.Flat, names: Sequence[str]) -> None:
        sharded.write(found, flat, names, self._run, self._group)
        if self._world.is_main:
            checkpoint.retain(
                self._run,
                found.step,
                self._config.keep_checkpoints,
                self._config.keep_every_steps,
            )

    def _copied(self, value: Tensor) -> Tensor:
        """Return a copy on the CPU; of a sharded tensor, of this rank's slice."""
        from torch.distributed.tensor import DTensor

        if not isinstance(value, DTensor):
            return value.detach().to("cpu", copy=True)
        return DTensor.from_local(
            value.to_local().detach().to("cpu", copy=True),
            self._mesh,
            value.placements,
            run_check=False,
            shape=value.shape,
            stride=value.stride(),
        )


def _mapped(value: Any, copied: Callable[[Tensor], Tensor]) -> Any:
    """Return nested dicts and lists with their tensors copied."""
    if isinstance(value, Tensor):
        return copied(value)
    if isinstance(value, dict):
        return {key: _mapped(item, copied) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, copied) for item in value]
    return value


def _as_is(value: Tensor) -> Tensor:
    return value


__all__ = ["SaveError", "Saver"]
