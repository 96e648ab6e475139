"""Batches in plan order, from worker processes that only execute lists."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from typing import Any, Final

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.settings import ConfigError
from tcjepa.data.batch import Batch, BatchBuilder, Task
from tcjepa.data.config import DataConfig, worker_count
from tcjepa.data.device_resize import carried_side
from tcjepa.data.errors import DataError, WorkerDiedError
from tcjepa.data.index import ShardIndex
from tcjepa.data.ledger import SubstitutionLedger
from tcjepa.data.memory import SharedBatches
from tcjepa.data.plan import LoaderState, Plan
from tcjepa.data.prefetch import ShardPrefetcher

#: Seconds a worker lives on after SIGTERM. Schedulers signal every process of a job at once, and
#: the trainer wants to finish its step and save before its workers are gone.
_GRACE: Final = 60
_END: Final = object()
#: Batches that a trainer holds at a time without the loader falling back to fresh memory.
_HELD: Final = 3


class Loader:
    """An iterable of `steps` batches; iterating twice gives the same batches twice.

    Step s takes the global positions [start + s·G, start + (s+1)·G) for global batch G; rank r of R
    the r-th of R equal slices. Worker count changes nothing but speed.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        plan: Plan,
        tasks: Tasks,
        ledger: SubstitutionLedger,
    ) -> None:
        self.plan = plan
        self._index, self._config, self._tasks, self._ledger = index, config, tasks, ledger

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Batch]:
        config, workers = self._config, min(worker_count(self._config), len(self))
        prefetcher = ShardPrefetcher(self._index, config, self.plan)
        shared = None
        if workers:
            most = workers * config.prefetch + _HELD
            shared = SharedBatches(most, self._tasks.local_batch, carried_side(config))
        builder = BatchBuilder(self._index, config, self.plan.seed, shared)
        tasks = self._tasks.attended(prefetcher, shared)
        try:
            self._ledger.begin(self._tasks.start)
            for sent in run_tasks(builder, tasks, workers, config.prefetch):
                batch = sent.received()
                del sent
                self._ledger.record(batch, self._tasks.global_batch)
                yield batch
                del batch  # it may be used again
        finally:
            prefetcher.close()

    def state_after(self, batch: Batch) -> LoaderState:
        """Return the state to save once a batch has entered an optimizer step on every rank."""
        return self.plan.state(batch.position + self._tasks.global_batch)


class Tasks(Sequence[Task]):
    """The lists that workers execute: one rank's slice of each global batch of a plan."""

    def __init__(
        self, plan: Plan, *, start: int, steps: int, global_batch: int, rank: int, world_size: int
    ) -> None:
        self.start, self.global_batch = start, global_batch
        self.local_batch = global_batch // world_size
        self._plan, self._steps, self._rank = plan, steps, rank
        self._prefetcher: ShardPrefetcher | None = None
        self._shared: SharedBatches | None = None

    def attended(self, prefetcher: ShardPrefetcher, shared: SharedBatches | None) -> Tasks:
        """Return the same tasks, which tell a prefetcher what is coming and take shared memory."""
        tasks = copy.copy(self)
        tasks._prefetcher, tasks._shared = prefetcher, shared
        return tasks

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        position = self.start + step * self.global_batch
        if self._prefetcher is not None:
            self._prefetcher.at(position, position + self.global_batch)
        first = position + self._rank * self.local_batch
        epochs, rows = self._plan.rows(first, first + self.local_batch)
        memory = None if self._shared is None else self._shared.take()
        return Task(position, tuple(epochs.tolist()), tuple(rows.tolist()), memory)


def make_loader(
    index: ShardIndex,
    config: DataConfig,
    *,
    seed: int,
    global_batch: int,
    steps: int,
    state: LoaderState | None = None,
    rank: int = 0,
    world_size: int = 1,
    ledger: SubstitutionLedger | None = None,
) -> Loader:
    """Return the batches of `steps` steps of one rank, from a saved state or from the start.

    `global_batch` [images] is over all ranks. Raises `ConfigError` if it cannot be shared equally
    among them, if an epoch of `config.tail` is empty, or if the state belongs to other data or
    another seed or lies inside a batch. Iteration raises a `tcjepa.data.errors.DataError`:
    `TooManyUnreadableError` past `config.max_bad_share`, `ShardUnavailableError` when a shard as a
    whole cannot be had, `WorkerDiedError` when a loader process was killed.
    """
    if global_batch <= 0 or global_batch % world_size:
        raise ConfigError(
            f"global batch {global_batch} cannot be shared equally by {world_size} ranks; "
            f"use a multiple of {world_size}"
        )
    plan = Plan(
        index.shard_sizes,
        index.fingerprint,
        seed,
        config.window,
        tail=config.tail,
        batch=global_batch,
    )
    start = plan.position(state) if state is not None else 0
    tasks = Tasks(
        plan,
        start=start,
        steps=steps,
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
    )
    ledger = ledger or SubstitutionLedger(None, config.max_bad_share)
    return Loader(index, config, plan, tasks, ledger)


def run_tasks(dataset: Any, tasks: Sequence[Any], workers: int, prefetch: int) -> Iterator[Any]:
    """Yield `dataset[task]` of every task in order, computed by `workers` processes or inline.

    A `DataError` of a worker is raised here as it was there; raises `WorkerDiedError` if one was
    killed.
    """
    if workers == 0:
        for task in tasks:
            yield dataset[task]
        return
    loader: DataLoader[Any] = DataLoader(
        _Courier(dataset),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=worker_context(),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else DataLoader would draw from the global one
    )
    results = iter(loader)
    while True:
        try:
            result = next(results, _END)
        except (RuntimeError, OSError, EOFError) as error:
            if not _tells_of_death(error):
                raise
            raise WorkerDiedError(
                f"a loader process died ({error}); most often the kernel killed it for want of "
                "memory: lower data.workers or data.prefetch, or look into dmesg. The run can be "
                "resumed"
            ) from error
        if isinstance(result, DataError):
            raise result
        if result is _END:
            return
        yield result


def _tells_of_death(error: Exception) -> bool:
    """Return whether an error of `DataLoader` means that a worker is gone.

    It says so itself, unless it was just receiving a batch, whose memory the worker hands over
    through a socket: then the socket breaks. Errors raised by a worker's code name the worker.
    """
    text = str(error)
    if isinstance(error, RuntimeError):
        return "exited unexpectedly" in text or "killed by signal" in text
    return "in DataLoader worker process" not in text


class _Courier(Dataset[Any]):
    """Hands errors over as values: raised in a worker, they would arrive wrapped in a traceback."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, task: Any) -> Any:
        try:
            return self._dataset[task]
        except DataError as error:
            return error


def worker_context() -> ForkServerContext:
    """Return what starts loader processes: a fork server that has imported this module.

    The server never touched CUDA, threads or event loops; a plain fork of the trainer would copy
    locked mutexes of all of these. Having imported torch once, it starts each worker in a moment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)
    warnings.simplefilter("default")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _die_later)
    threading.Thread(target=_end_with_trainer, name="end-with-trainer", daemon=True).start()


def _end_with_trainer() -> None:
    """End this process when the trainer is gone, however it went.

    torch's own watch looks at the parent, which is the fork server, which lives as long as we do: a
    killed trainer would leave its workers, and their memory, behind for ever.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def _die_later(signum: int, frame: object) -> None:
    del signum, frame
    signal.alarm(_GRACE)


__all__ = ["Batch", "Loader", "make_loader", "run_tasks", "worker_context"]
