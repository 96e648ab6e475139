"""What a run writes down: `log.jsonl`, TensorBoard events, and Weights & Biases if asked.

`log.jsonl` holds one line per optimizer step, in order, each step once: on resume the lines past
the checkpoint are cut off before anything is appended. Monitor readings are part of the line of the
step they were taken at. `status.json` says how long the run and its warm-up are to be and how it
ended; without an ending it still runs, or was killed.
"""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from pipeline.settings import ConfigError
from pipeline.storage import Directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG_FILE = "log.jsonl"
STATUS_FILE = "status.json"
WANDB_ID_FILE = "wandb_id"
TENSORBOARD_FOLDER = "tensorboard"

Record = dict[str, float | int | str | None]


class _Writer(Protocol):
    def scalars(self, step: int, values: dict[str, float]) -> None: ...
    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """Writes the records of one run; on ranks other than 0 it writes nothing.

    `steps` is the run's whole length, `warmup_steps` that of its warm-up [optimizer steps],
    `precision` what it computes in.
    """

    def __init__(
        self,
        run: Path,
        start_step: int,
        enabled: bool = True,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
        *,
        steps: int | None = None,
        warmup_steps: int | None = None,
        precision: str | None = None,
    ) -> None:
        self._run = Directory(run)
        self._facts = {"steps": steps, "warmup_steps": warmup_steps, "precision": precision}
        self._file: IO[str] | None = None
        self._writers: list[_Writer] = []
        if not enabled:
            return
        run.mkdir(parents=True, exist_ok=True)
        truncate(run, start_step)
        self._run.write_json(STATUS_FILE, {**self._facts, "ended": None, "error": None})
        self._file = (run / LOG_FILE).open("a", encoding="utf-8")
        self._writers.append(_TensorBoard(run / TENSORBOARD_FOLDER, start_step))
        if wandb_project:
            self._writers.append(_WeightsAndBiases(wandb_project, run, config or {}))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def write(self, records: list[Record]) -> None:
        """Append records, which carry their "step", and flush them to the disk."""
        if self._file is None:
            return
        for record in records:
            self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()
        for record in records:
            step = cast(int, record["step"])
            values = {k: float(v) for k, v in record.items() if isinstance(v, float)}
            for writer in self._writers:
                writer.scalars(step, values)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show an image (H, W, 3) uint8 where scalars are shown; it is no part of `log.jsonl`."""
        for writer in self._writers:
            writer.image(step, name, pixels)

    def close(self, error: BaseException | None = None) -> None:
        """Close the files and say how the run ended; further writes do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            said = None if error is None else f"{type(error).__name__}: {error}"
            ending = "stopped" if error is None else "failed"
            status = {**self._facts, "ended": ending, "error": said}
            self._run.write_json(STATUS_FILE, status)
        for writer in self._writers:
            writer.close()
        self._writers = []


def read(run: Path) -> list[Record]:
    """Return the records of a run's log in order; a last line torn by a crash is left out."""
    path = run / LOG_FILE
    if not path.exists():
        return []
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line can be torn: lines are appended
    return records


def truncate(run: Path, start_step: int) -> None:
    """Cut the log back to the records of steps before `start_step`, atomically."""
    if not (run / LOG_FILE).exists():
        return
    kept = [record for record in read(run) if cast(int, record["step"]) < start_step]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    Directory(run).write_text(LOG_FILE, text)


def _finite(record: Record) -> Record:
    """Return the record with NaN and infinities as strings, which JSON has no numbers for."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


class _TensorBoard:
    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote past its checkpoint.
        self._writer = SummaryWriter(str(folder), purge_step=start_step or None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, project: str, run: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "train.wandb_project is set, but wandb is not installed; `pip install wandb`, or "
                "set train.wandb_project=null"
            ) from error
        # One id for as long as the directory holds the run, so that a resumed one continues the
        # same curves and one that starts anew does not.
        identity = run / WANDB_ID_FILE
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:16])
        self._run = wandb.init(
            project=project,
            name=str(run),
            id=identity.read_text(),
            resume="allow",
            dir=run,
            config=config,
        )
        # An axis of our own: theirs takes no step that is below the last, and images are logged
        # before the readings of the steps that led to them.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        import wandb

        self._run.log({name: wandb.Image(pixels), "step": step})

    def close(self) -> None:
        self._run.finish()
