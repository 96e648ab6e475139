"""The training loop: read, step, watch, save.

Everything random is a function of (seed, step): the data plan, the masks and, through re-seeding at
every step, whatever a layer draws. So a run that was killed and resumed repeats the losses of one
that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import torch
from torch import Tensor

from pipeline.progress import Progress
from tcjepa import keyed
from tcjepa.data.loader import Batch
from tcjepa.train import distributed, monitors, optim
from tcjepa.train.accumulation import accumulate
from tcjepa.train.log import Record
from tcjepa.train.run import Run
from tcjepa.train.signals import Interrupts
from tcjepa.train.trace import Traced

#: How long several ranks may train without asking each other whether to stop [s]. A signal reaches
#: them at different steps, and torchrun kills 30 s after it asks.
_ASK_SECONDS: Final = 5.0


class Ending(Enum):
    """Why training stopped; the state is saved in every case."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    OUT_OF_TIME = "out of time"


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite; the message says what to change."""


def train(run: Run) -> Ending:
    """Train from where `run` stands to its last step, or until a signal or the time budget.

    Raises `DivergedError` at a loss or gradient that is not finite, leaving the last checkpoint as
    it is.
    """
    config, steps = run.config.train, run.schedule.steps
    window, saved, ending = Window(), time.monotonic(), Ending.FINISHED
    asks_every = 1  # steps; a later guess is of the time that they take
    with run, Interrupts() as signals, _progress(run) as progress:
        progress.skip(run.step)
        for batch in window.timed(run.batches()):
            window.add(run, batch, optimizer_step(run, batch))
            run.step += 1
            progress.advance()
            last = run.step == steps
            due = monitors.due(config, run.step, last)
            # What is to be kept for good has to be saved, whatever else asks for a checkpoint.
            intervals = (config.checkpoint_every_steps, config.keep_every_steps)
            by_steps = any(run.step % every == 0 for every in intervals if every)
            stop_now = (
                run.step % asks_every == 0
                and distributed.any_rank([signals.requested], run.world)[0]
            )
            if not (last or due or by_steps or stop_now or run.step % config.log_every == 0):
                continue
            asks_every = _steps_within(_ASK_SECONDS, window, run)
            loss = window.flush(run, due)
            run.check_saves()
            progress.advance(0, note=f"loss {loss:.4g}")
            minutes = (time.monotonic() - saved) / 60
            stopping, late, save = distributed.any_rank(
                [
                    signals.requested,
                    run.is_out_of_time(),
                    by_steps or last or minutes >= config.checkpoint_every_minutes,
                ],
                run.world,
            )
            if save or stopping or late:
                run.save()
                saved = time.monotonic()
                window.reset()
            if not last and (stopping or late):
                ending = Ending.INTERRUPTED if stopping else Ending.OUT_OF_TIME
                break
    return ending


def _steps_within(seconds: float, window: Window, run: Run) -> int:
    """Return how many steps the slowest rank does in a time, at least 1; the same on all ranks."""
    if run.world.size == 1:
        return 1
    spent = (time.monotonic() - window.started) / len(window.steps)
    return max(1, int(seconds / distributed.largest(spent, run.world)))


def _progress(run: Run) -> Progress:
    """Return the run's progress, shown by rank 0 alone."""
    if run.world.is_main:
        return Progress("pretrain", run.schedule.steps, "steps")
    return Progress("pretrain", run.schedule.steps, "steps", every=math.inf, stream=io.StringIO())


def optimizer_step(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Do one optimizer step and return its loss, terms and readings as scalars on the device."""
    values = run.schedule.at(run.step)
    torch.manual_seed(keyed.key("step", run.config.train.seed, run.step, run.world.rank) >> 65)
    optim.apply(run.optimizer, values)
    run.optimizer.zero_grad(set_to_none=True)
    readings = accumulate(run, batch)
    norm = run.parallel.clip(run.parameters, run.config.train.clip_grad)
    run.optimizer.step()
    run.model.finish_step(values.ema)
    return {**readings, "grad_norm": norm}


@dataclass
class Window:
    """The steps since the last fetch from the device, which is rare: it stalls a GPU."""

    steps: list[tuple[int, Tensor]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    images: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def reset(self) -> None:
        """Begin the next window now; time spent on monitors and checkpoints belongs to none."""
        self.steps, self.rows = [], []
        self.images, self.waited, self.started = 0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, adding up the time spent waiting for them [s]."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def add(self, run: Run, batch: Batch, values: dict[str, Tensor]) -> None:
        """Keep a step's scalars on the device, and its rows in case they are asked for."""
        self.keys = list(values)
        self.steps.append((run.step, torch.stack([values[key] for key in self.keys])))
        self.rows.append(batch.rows.tolist())
        self.images += run.config.train.batch

    def flush(self, run: Run, due: Collection[str]) -> float:
        """Fetch, check and log the steps of the window, and measure what is due (`monitors.due`).

        Returns the last step's loss. Raises `DivergedError` if a value is not finite.
        """
        local = torch.stack([values for _, values in self.steps])
        finite = local.isfinite().all(dim=1).tolist()
        means = distributed.mean(local, run.world).tolist()
        if distributed.any_rank([not all(finite)], run.world)[0]:
            self._diverged(run, finite, local.tolist())
        if run.config.train.trace:
            self._trace(run, local.tolist(), means)
        seconds = time.monotonic() - self.started
        records: list[Record] = []
        for (step, _), row in zip(self.steps, means, strict=True):
            values = run.schedule.at(step)
            records.append(
                {
                    "step": step,
                    **dict(zip(self.keys, row, strict=True)),
                    "lr": values.lr,
                    "weight_decay": values.weight_decay,
                    **({"ema": values.ema} if run.model.has_target else {}),
                }
            )
        records[-1] |= run.progress(self.images, seconds, self.waited)
        records[-1] |= run.measure(due)
        run.record(records)
        self.reset()
        return float(means[-1][self.keys.index("loss")])

    def _trace(self, run: Run, local: list[list[float]], means: list[list[float]]) -> None:
        loss = self.keys.index("loss")
        run.trace(
            [
                Traced(step, run.world.rank, run.uids(rows), own[loss], mean[loss])
                for (step, _), rows, own, mean in zip(
                    self.steps, self.rows, local, means, strict=True
                )
            ]
        )

    def _diverged(self, run: Run, finite: list[bool], local: list[list[float]]) -> None:
        bad = finite.index(False) if False in finite else 0
        step = self.steps[bad][0]
        named = zip(self.keys, local[bad], strict=True)
        broken = [key for key, value in named if not math.isfinite(value)]
        precision = "train.precision=fp32, " if run.is_bf16 else ""
        raise DivergedError(
            f"step {step}: {', '.join(broken) or 'a value on another rank'} is not finite. Nothing "
            f"was saved since step {run.saved_step}. Batch: {run.describe_rows(self.rows[bad])}. "
            f"Likely causes: a learning rate that is too high (it was {run.schedule.at(step).lr:g};"
            " lower train.lr or lengthen train.warmup_steps), no clipping (set "
            f"train.clip_grad=1.0), or too little precision (try {precision}a larger "
            "train.batch). Restart with the changed keys and --fresh"
        )
