"""A run: all that training needs, built new or from the run directory's newest checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.settings import ConfigError, to_yaml
from pipeline.storage import Directory
from tcjepa.config import TrainConfig, differences
from tcjepa.data.index import ShardIndex
from tcjepa.data.ledger import SubstitutionLedger
from tcjepa.data.loader import Batch, Loader, make_loader
from tcjepa.data.plan import LoaderState
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.pretrained import initialise_encoders
from tcjepa.text import open_text_encoder
from tcjepa.train import checkpoint, monitors, optim
from tcjepa.train.checkpoint import Checkpoint
from tcjepa.train.distributed import World
from tcjepa.train.inputs import InputMaker, Inputs
from tcjepa.train.log import LOG_FILE, TENSORBOARD_FOLDER, Record, RunLog, read

CONFIG_FILE = "config.yaml"
LEDGER_FILE = "unreadable.jsonl"
EVALUATION_FILE = "evaluation.json"
#: What training writes into the run directory, and `--fresh` sets aside.
WRITTEN = (
    CONFIG_FILE,
    checkpoint.FOLDER,
    LOG_FILE,
    TENSORBOARD_FOLDER,
    LEDGER_FILE,
    EVALUATION_FILE,
    "wandb",
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
        _set_threads(config, world)
        found = checkpoint.latest(self.directory, say)
        if found is not None:
            _refuse_other_config(found, config)
        self.index = ShardIndex.open(config.data)
        self.schedule = optim.make_schedule(config.train, len(self.index))
        self.is_bf16 = uses_bf16(config, world.device)

        torch.manual_seed(config.train.seed)
        text = open_text_encoder(config.text) if config.model.text else None
        self.model = TCJEPA(config.model, text.width if text else None).to(world.device)
        if found is None and config.model.init is not None:
            initialise_encoders(self.model, config.model.init, say, self._open_weights)
        self.optimizer = optim.make_optimizer(self.model, config.train, world.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.inputs = InputMaker(config, self.model.encoder.shape.grid, world, text)
        self.step = self.saved_step = 0
        self._loader_state: LoaderState | None = None
        self._minutes_before = 0.0
        if found is not None:
            self._restore(found)
        self._started = time.monotonic()
        ledger = SubstitutionLedger(Path(config.run) / LEDGER_FILE, config.data.max_bad_share)
        left = self.schedule.steps - self.step
        self._loader = self._make_loader(self._loader_state, left, ledger)
        self._held: list[Batch] | None = None
        if config.train.compile:
            self.model.compile()
        self._watch = self._new_watch([])
        self._log: RunLog | None = None

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
        )
        self.model.train()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._log is not None:
            self._log.close()

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's batches from the current step to the last."""
        for batch in self._loader:
            yield batch
            # Only now has the batch entered an optimizer step.
            self._loader_state = self._loader.state_after(batch)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Enter the context of a forward pass: bf16 where the config and the hardware say so."""
        device = self.world.device.type
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=self.is_bf16))
            if device == "cpu" and self.is_bf16:
                # The fused CPU attention's bf16 backward took 34% of a step, plain matmuls 9%.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def regularizer_scale(self, step: int) -> Tensor | float:
        """Return the text regularizers' warm-up factor; a tensor, lest compile specialises."""
        text = self.config.model.text
        if text is None:
            return 1.0
        return torch.tensor(text.regularizer_scale(step), device=self.world.device)

    def is_out_of_time(self) -> bool:
        """Whether this process has used up `train.max_minutes`."""
        limit = self.config.train.max_minutes
        return limit is not None and time.monotonic() - self._started > 60 * limit

    def save(self) -> None:
        """Write a checkpoint of the current step; every rank must have come this far."""
        minutes = self._minutes_before + (time.monotonic() - self._started) / 60
        state = self._loader.plan.state(self.step * self.config.train.batch)
        if self.world.is_main:
            Checkpoint(
                step=self.step,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                loader=dict(state.to_dict()),
                config=self.config.model_dump(mode="json"),
                minutes=minutes,
                images=len(self.index),
            ).save(self.directory, self.config.train.keep_checkpoints)
        self.saved_step = self.step

    def record(self, records: list[Record]) -> None:
        """Log the records and say what the monitors raise."""
        assert self._log is not None
        self._log.write(records)
        for record in records:
            for line in self._watch.check(record):
                self._say(f"warning: {line}")

    def measure(self) -> dict[str, float]:
        """Return the monitor readings on this rank's part of the held images."""
        if self._held is None:
            self._held = self._hold(self.config.train.monitor_images)
        with self.autocast():
            return monitors.measure(self.model, self._held_inputs())

    def describe_rows(self, rows: Sequence[int], most: int = 8) -> str:
        """Return the uids and numbers of some index rows, for an error message."""
        named = [f"{self.index.entry(row).uid} (row {row})" for row in rows[:most]]
        return ", ".join(named) + (f" and {len(rows) - most} more" if len(rows) > most else "")

    def _new_watch(self, history: list[Record]) -> monitors.Watch:
        text = self.config.model.text
        rectified = text is not None and text.sparsity == "rectified"
        ignored = () if rectified else ("positive_share",)
        return monitors.Watch(self.schedule.warmup_steps, history, ignored)

    def _hold(self, count: int) -> list[Batch]:
        """Return the first `count` images that this rank's share of the plan begins with."""
        local = self.config.train.batch // self.world.size
        held = list(self._make_loader(None, -(-count // local), SubstitutionLedger(None, 1.0)))
        kept = count - local * (len(held) - 1)
        last = held[-1]
        held[-1] = replace(
            last, images=last.images[:kept], captions=last.captions[:kept], rows=last.rows[:kept]
        )
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

    def _open_weights(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        found = checkpoint.resolve(path, self._say)
        return found.config, found.model

    def _restore(self, found: Checkpoint) -> None:
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.step = self.saved_step = found.step
        self._loader_state = LoaderState.from_dict(found.loader)
        self._minutes_before = found.minutes


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether forward passes run under bf16 autocast; `auto` asks the hardware."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for it; without an answer, fp32 is always right.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def _set_threads(config: TrainConfig, world: World) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(config.train.threads or max(1, (cores or 1) // world.local_size))


def _refuse_other_config(found: Checkpoint, config: TrainConfig) -> None:
    changed = differences(found.config, config.model_dump(mode="json"))
    if changed:
        raise ConfigError(
            f"run={config.run} has a checkpoint of step {found.step} with another config:\n"
            + "".join(f"  {line}\n" for line in changed)
            + "restore these keys to go on, name another run=…, or start over with --fresh (which "
            "keeps the old files in a replaced-NNN folder)"
        )
