"""A run: all that training needs, built new or from the run directory's newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pipeline.settings import ConfigError, to_yaml
from pipeline.storage import Directory
from tcjepa.config import TrainConfig, differences
from tcjepa.data.index import ShardIndex
from tcjepa.data.ledger import SubstitutionLedger
from tcjepa.data.loader import Batch, Loader, make_loader
from tcjepa.data.plan import LoaderState, samples_per_epoch
from tcjepa.evaluate.tally import TALLIES_FILE
from tcjepa.model.config import TextConditioning
from tcjepa.model.learner import Inputs
from tcjepa.model.pretrained import initialise_encoders
from tcjepa.text import split_words
from tcjepa.train import checkpoint, distributed, hardware, monitors, optim, sharded
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.distributed import World
from tcjepa.train.inputs import InputMaker
from tcjepa.train.labels import Labels
from tcjepa.train.log import (
    LOG_FILE,
    STATUS_FILE,
    TENSORBOARD_FOLDER,
    WANDB_ID_FILE,
    Record,
    RunLog,
    read,
)
from tcjepa.train.objective import make_model, text_encoder_of
from tcjepa.train.parallel import Parallel, is_sharded
from tcjepa.train.saver import Saver
from tcjepa.train.trace import TRACE_FILE, Trace, Traced
from tcjepa.watch.alarms import Watch
from tcjepa.watch.periodic import Periodic
from tcjepa.watch.rules import meaningless
from tcjepa.watch.snapshots import FOLDER as PICTURES_FOLDER
from tcjepa.watch.speed import Utilisation

CONFIG_FILE = "config.yaml"
LEDGER_FILE = "unreadable.jsonl"
EVALUATION_FILE = "evaluation.json"
#: What training writes into the run directory, and `--fresh` sets aside; `*` as a shell has it.
WRITTEN = (
    CONFIG_FILE,
    checkpoint.FOLDER,
    LOG_FILE,
    STATUS_FILE,
    TENSORBOARD_FOLDER,
    PICTURES_FOLDER,
    TRACE_FILE,
    LEDGER_FILE,
    *(str(Path(name).with_stem(f"{Path(name).stem}*")) for name in (EVALUATION_FILE, TALLIES_FILE)),
    "inspect.html",
    "wandb",
    WANDB_ID_FILE,
)

Say = Callable[[str], None]


class Run:
    """The state of a training run; enter it to open its log, then `tcjepa.train.loop.train` it.

    With checkpoints in `config.run` it goes on from the newest sound one. Raises `ConfigError` if
    their config differs in a key that changes results, or if the data does.
    """

    def __init__(self, config: TrainConfig, world: World, say: Say) -> None:
        self.config, self.world, self._say = config, world, say
        self.directory = Directory(config.run)
        hardware.set_threads(config.train, world)
        found = _newest(self.directory, world, say, is_sharded(config.train, world))
        if found is not None:
            refuse_other_config(found, config)
        self.index = ShardIndex.open(config.data)
        epoch = samples_per_epoch(len(self.index), config.data.tail, config.train.batch)
        self.schedule = optim.make_schedule(config.train, epoch)
        self.is_bf16 = hardware.uses_bf16(config.train, world.device)
        self.precision = "bf16" if self.is_bf16 else "fp32"
        if found is not None:
            self._warn_of_other_precision()
        hardware.keep_fp32(world.device)  # in bf16 runs, too: for all that autocast leaves alone

        self._is_hashed = config.text.encoder == "hashed"
        text = text_encoder_of(config)
        is_supervised = config.train.objective == "supervised"
        labels = Labels(self.index, config.train.labels) if is_supervised else None
        # Last: loading a text encoder may draw numbers, and arms of a seed begin with one encoder.
        torch.manual_seed(config.train.seed)
        self.model = make_model(config, text, labels.counts if labels else None).to(world.device)
        if found is None and config.model.init is not None:
            initialise_encoders(self.model, config.model.init, say, self._open_weights)
        self.parallel = Parallel(self.model, config.train, world, self.is_bf16)
        self.optimizer = optim.make_optimizer(self.model, config.train, world.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.inputs = InputMaker(config, self.model.encoder.shape.grid, world, text, labels)
        self._saver = Saver(self.directory, config.train, world, self.parallel.is_sharded)
        self.step = self.saved_step = 0
        self._minutes_before = 0.0
        state = None if found is None else self._restore(found)
        self._started = time.monotonic()
        ledger = SubstitutionLedger(Path(config.run) / LEDGER_FILE, config.data.max_bad_share)
        self._ledger = ledger
        left = self.schedule.steps - self.step
        self._loader = self._make_loader(state, left, ledger)
        self._held: list[Batch] | None = None
        self._watch = self._new_watch([])
        self._periodic = Periodic(config, world, self.index, text, self.inputs)
        self._utilisation = Utilisation(config, world, text)
        self._log: RunLog | None = None
        self._trace: Trace | None = None

    @property
    def accumulates(self) -> bool:
        """Whether a step's gradient is added up from several forward passes."""
        train = self.config.train
        return self.world.size > 1 or (train.micro_batch or train.batch) < train.batch

    @property
    def conditioning(self) -> TextConditioning | None:
        """How captions condition what is trained; None for I-JEPA and the baselines."""
        return self.config.model.text if self.config.train.objective == "jepa" else None

    def has_words(self, caption: str) -> bool:
        """Return whether the text encoder finds any word in a caption."""
        if self._is_hashed:
            return bool(split_words(caption))
        # Tokenizers drop what is not printed: controls, soft hyphens, marks of byte order.
        return any(char.isprintable() and not char.isspace() for char in caption)

    @property
    def is_done(self) -> bool:
        """Whether the last step has been taken."""
        return self.step >= self.schedule.steps

    def __enter__(self) -> Run:
        root = Path(self.config.run)
        if self.world.is_main:
            checkpoint.clean(self.directory)
            self.directory.write_text(CONFIG_FILE, to_yaml(self.config))
        history = [record for record in read(root) if int(record["step"] or 0) < self.step]
        self._watch = self._new_watch(history)
        self._log = RunLog(
            root,
            self.step,
            enabled=self.world.is_main,
            wandb_project=self.config.train.wandb_project,
            config=self.config.model_dump(mode="json"),
            steps=self.schedule.steps,
            warmup_steps=self.schedule.warmup_steps,
            precision=self.precision,
        )
        if self.config.train.trace and self.world.is_main:
            self._trace = Trace(root, self.step)
        self.model.train()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._saver.close()
        finally:
            if self._log is not None:
                self._log.close(error)
            if self._trace is not None:
                self._trace.close()

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's batches from the current step to the last."""
        for batch in self.inputs.ahead(self._loader, self.step):
            yield batch
            # Only now has the batch entered an optimizer step.
            self._loader_state = self._loader.state_after(batch)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass: bf16 where the config and the hardware say so."""
        return hardware.autocast(self.world.device, self.is_bf16)

    def regularizer_scale(self, step: int) -> Tensor | float:
        """Return the text regularizers' warm-up factor; a tensor, lest compile specialises."""
        text = self.conditioning
        if text is None:
            return 1.0
        # Filled on the device: copying a number there would wait for all that it has to do.
        return torch.full((), text.regularizer_scale(step), device=self.world.device)

    def is_out_of_time(self) -> bool:
        """Whether this process has used up `train.max_minutes`."""
        limit = self.config.train.max_minutes
        return limit is not None and time.monotonic() - self._started > 60 * limit

    def save(self) -> None:
        """Save the current step; every rank must have come this far, and calls it."""
        described = Checkpoint(
            step=self.step,
            model={},
            optimizer={},
            loader=dict(self._loader.plan.state(self.step * self.config.train.batch).to_dict()),
            config=self.config.model_dump(mode="json"),
            minutes=self._minutes_before + (time.monotonic() - self._started) / 60,
            images=len(self.index),
        )
        self._saver.save(described, self.model, self.optimizer)
        self.saved_step = self.step

    def check_saves(self) -> None:
        """Raise `SaveError` if a checkpoint could not be written in the background."""
        self._saver.check()

    def trace(self, steps: Sequence[Traced]) -> None:
        """Write what the ranks saw into the trace; call it on every rank, if `train.trace`."""
        everyone = distributed.gather(list(steps), self.world)
        if self._trace is not None:
            self._trace.write([one for own in everyone for one in own])

    def record(self, records: list[Record]) -> None:
        """Log the records and say what the monitors raise."""
        assert self._log is not None
        self._log.write(records)
        for record in records:
            for finding in self._watch.check(record):
                self._say(f"{finding.severity}: {finding}")

    def progress(self, images: int, seconds: float, waited: float) -> dict[str, float]:
        """Return how a window of steps went: `images` of all ranks in `seconds`, `waited` of them
        for data.
        """
        speed = images / seconds
        return {
            "images_per_s": speed,
            "data_wait": waited / seconds,
            "unreadable": self._ledger.replaced / max(self._ledger.seen, 1),
            **self._utilisation.measure(speed),
            **monitors.memory(self.world.device),
        }

    def measure(self, due: Collection[str]) -> dict[str, float]:
        """Return the readings that are due, of "monitor", "probe", and draw "attention" images.

        Monitors are measured on this rank's part of the held images.
        """
        readings: dict[str, float] = {}
        if "monitor" in due:
            if self._held is None:
                self._held = self._hold(self.config.train.monitor_images)
                self._utilisation.look_at(self._held[0].captions)
            with self.autocast():
                readings |= monitors.measure(self.model, self._held_inputs())
        if self._log is None:
            return readings
        with self.autocast():
            return readings | self._periodic.measure(due, self.model, self.step, self._log)

    def uids(self, rows: Sequence[int]) -> tuple[str, ...]:
        """Return the uids of some rows of the index."""
        return tuple(self.index.entry(row).uid for row in rows)

    def describe_rows(self, rows: Sequence[int], most: int = 8) -> str:
        """Return the uids and numbers of some index rows, for an error message."""
        named = [f"{self.index.entry(row).uid} (row {row})" for row in rows[:most]]
        return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")

    def _new_watch(self, history: list[Record]) -> Watch:
        schedule = self.schedule
        ignored = meaningless(self.config.model_dump(mode="json"))
        return Watch(schedule.warmup_steps, history, ignored, steps=schedule.steps)

    def _hold(self, count: int) -> list[Batch]:
        """Return the first `count` images that this rank's share of the plan begins with."""
        local = self.config.train.batch // self.world.size
        held = list(self._make_loader(None, -(-count // local), SubstitutionLedger(None, 1.0)))
        kept = count - local * (len(held) - 1)
        held[-1] = held[-1].first(kept)
        return held

    def _held_inputs(self) -> Iterator[Inputs]:
        for step, batch in enumerate(self._held or []):
            for inputs, _ in self.inputs.micro_batches(batch, step):
                yield inputs

    def _make_loader(
        self, state: LoaderState | None, steps: int, ledger: SubstitutionLedger
    ) -> Loader:
        train = self.config.train
        return make_loader(
            self.index,
            self.config.data,
            seed=train.seed,
            global_batch=train.batch,
            steps=steps,
            state=state,
            rank=self.world.rank,
            world_size=self.world.size,
            ledger=ledger,
        )

    def _warn_of_other_precision(self) -> None:
        """Say so where `train.precision: auto` means another one than where the run was begun."""
        known = self.directory.exists(STATUS_FILE)
        began = self.directory.read_json(STATUS_FILE).get("precision") if known else None
        if began not in (None, self.precision):
            self._say(
                f"warning: this run computed in {began} so far and goes on in {self.precision}, "
                f"which train.precision=auto means on this {self.world.device.type}; stop it and "
                "go on where it was begun if its results are to be compared"
            )

    def _open_weights(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        found = checkpoint.resolve(path, self._say)
        return found.config, found.model

    def _restore(self, found: Checkpoint) -> LoaderState:
        if found.folder is not None:
            sharded.read_slices(found.folder, self.model, self.optimizer)
        else:
            sharded.load_whole(found, self.model, self.optimizer)
        self.step = self.saved_step = found.step
        self._minutes_before = found.minutes
        return LoaderState.from_dict(found.loader)


def _newest(run: Directory, world: World, say: Say, in_slices: bool) -> Checkpoint | None:
    """Return the newest sound checkpoint; rank 0 chooses, so that all resume from the same."""
    found = checkpoint.latest(run, say, whole=not in_slices) if world.is_main else None
    step = distributed.from_main(None if found is None else found.step, world)
    if step is None or found is not None:
        return found
    path = checkpoint.path_of(run, checkpoint.name_of(step))
    return checkpoint.load(path, whole=not in_slices, verify=False)


def refuse_other_config(found: Checkpoint, config: TrainConfig) -> None:
    """Raise `ConfigError` if a run of the config may not go on from what was found."""
    changed = differences(found.config, config.model_dump(mode="json"))
    if changed:
        raise ConfigError(
            f"run={config.run} has a checkpoint of step {found.step} with another config:\n"
            + "".join(f"  {line}\n" for line in changed)
            + "restore these keys to go on, name another run=…, or start over with --fresh (which "
            "keeps the old files in a replaced-NNN folder)"
        )
