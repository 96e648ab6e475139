"""Checkpoints: written whole or not at all, verified when read, kept by a retention rule.

A checkpoint is `step-00000100.pt` plus `step-00000100.json`. The second file is the commit mark: it
is written last and holds the first one's SHA-256, since `torch.load` does not notice flipped bits.
The `.pt` file is a dict of plain values and tensors that `torch.load(weights_only=True)` accepts.
Sharded runs write a folder `step-00000100.dcp` instead, see `tcjepa.train.sharded`; both kinds load
on any number of ranks, sharded or not.

No random-generator state is stored for the training stream: the loop seeds every step from (seed,
step, rank), so the step number *is* that state, for any number of ranks.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tcjepa
from pipeline.settings import ConfigError
from pipeline.storage import TEMPORARY_PREFIX, Directory

FORMAT = 1
FOLDER = "checkpoints"
SHARDED = ".dcp"


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used; the message says which file and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps done."""
    model: dict[str, Any]
    """State of the whole model: encoder, target encoder (EMA), predictor."""
    optimizer: dict[str, Any]
    loader: dict[str, Any]
    """The data loader's four integers, as `LoaderState` has them."""
    config: dict[str, Any]
    """The resolved config, as plain data."""
    minutes: float
    """Training time so far, over all restarts [minutes]."""
    images: int
    """Images per epoch; fixes the schedule."""
    folder: Path | None = field(default=None, compare=False)
    """Where `model` and `optimizer` still lie, if they are empty here (see `load`)."""

    def save(self, run: Directory, keep: int, keep_every: int | None = None) -> str:
        """Write the checkpoint into `run`, apply the retention rule, return its name."""
        folder = run / FOLDER
        name = name_of(self.step)
        content = {**self.plain(), "model": self.model, "optimizer": self.optimizer}
        temporary = folder.temporary(f"{name}.pt")
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            mark = {"step": self.step, "sha256": digest(temporary), "bytes": size}
            folder.remove(f"{name}{SHARDED}")  # an unsound one of the same step
            folder.commit(temporary, f"{name}.pt")
        finally:
            temporary.unlink(missing_ok=True)
        folder.write_json(f"{name}.json", mark)
        retain(run, self.step, keep, keep_every)
        return name

    def plain(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON can hold it."""
        return {
            "format": FORMAT,
            "step": self.step,
            "loader": self.loader,
            "config": self.config,
            "minutes": self.minutes,
            "images": self.images,
            "versions": versions(),
        }


def retain(run: Directory, newest: int, keep: int, keep_every: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and those of multiples of `keep_every` steps.

    `newest` is the step just written. Later ones were passed over as damaged when the run resumed
    before them: they go, and never count among those that are kept.
    """
    folder = run / FOLDER
    sound = [name for name in names(run) if step_of(name) <= newest]
    spared = set(sound[-keep:])
    if keep_every is not None:
        spared |= {name for name in sound if step_of(name) % keep_every == 0}
    for old in names(run):
        if old in spared:
            continue
        folder.remove(f"{old}.json")  # the mark first: half a deletion is no checkpoint
        folder.remove(f"{old}.pt")
        folder.remove(f"{old}{SHARDED}")


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint, without suffix."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """Return the step that a checkpoint's name says."""
    return int(name.removeprefix("step-"))


def versions() -> dict[str, str]:
    """Return what wrote a checkpoint: versions of this code, torch and Python."""
    return {
        "tcjepa": getattr(tcjepa, "__version__", "0.1.0"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def names(run: Directory) -> list[str]:
    """Return the names of the run's committed checkpoints, oldest first."""
    return [name.removesuffix(".json") for name in (run / FOLDER).names("step-*.json")]


def load(path: Path, whole: bool = True, verify: bool = True) -> Checkpoint:
    """Read one checkpoint, a `.pt` file or `.dcp` folder, onto the CPU.

    With `whole` false the tensors of a `.dcp` folder are left where they are, for ranks that want
    only their slices of them. Raises `CheckpointError` if it is not sound; `verify` false trusts
    that another rank has looked.
    """
    try:
        if verify:
            _verify(path)
        if path.suffix == SHARDED:
            return _load_sharded(path, whole)
        content = _known(torch.load(path, map_location="cpu", weights_only=True), path)
        return Checkpoint(**content)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def latest(run: Directory, warn: Callable[[str], None], whole: bool = True) -> Checkpoint | None:
    """Return the newest sound checkpoint of a run; None if it never saved one.

    Each unsound one is reported through `warn` and passed over. Raises `CheckpointError` if there
    are checkpoints but none is sound: starting over silently would throw the run away. `whole` as
    for `load`.
    """
    found = names(run)
    for name in reversed(found):
        try:
            return load(path_of(run, name), whole)
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {(run / FOLDER).url} is readable; restore "
            "one from a copy, or start over with --fresh"
        )
    return None


def path_of(run: Directory, name: str) -> Path:
    """Return the file or folder of a checkpoint of a run, whichever of the two kinds it is."""
    folder = run / FOLDER
    sharded = Path(folder.path(f"{name}{SHARDED}"))
    return sharded if sharded.is_dir() else Path(folder.path(f"{name}.pt"))


def resolve(target: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint that a user named, whole.

    That is a `.pt` file, a `.dcp` folder, or a run directory's newest. Raises `CheckpointError` if
    there is none.
    """
    if target.is_file() or target.suffix == SHARDED:
        return load(target)
    checkpoint = latest(Directory(target), warn) if target.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(
            f"{target} is neither a checkpoint (.pt file or {SHARDED} folder) nor a run directory "
            f"with {FOLDER}/step-*"
        )
    return checkpoint


def _verify(path: Path) -> None:
    """Compare a checkpoint with its commit mark; a lone `.pt` file may have none."""
    name, mark = path.stem, Directory(path.parent)
    if not mark.exists(f"{name}.json"):
        if path.suffix == SHARDED:
            raise CheckpointError(f"{path} was never finished: there is no {name}.json beside it")
        return
    expected = mark.read_json(f"{name}.json")
    for part, known in expected.get("files", {path.name: expected}).items():
        file = path / part if "files" in expected else path
        if not file.exists():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != known["bytes"]:
            raise CheckpointError(f"{file} is torn: its size differs from {name}.json")
        if digest(file) != known["sha256"]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 differs from {name}.json")


def _load_sharded(path: Path, whole: bool) -> Checkpoint:
    from tcjepa.train import sharded

    content = _known(sharded.read_plain(path), path)
    names_of_parameters = content.pop("parameters")
    model: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    if whole:
        model, optimizer = sharded.split(sharded.read(path), names_of_parameters)
    return Checkpoint(**content, model=model, optimizer=optimizer, folder=None if whole else path)


def _known(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a checkpoint's content without what only describes it, if its format is ours."""
    found = content.pop("format", None)
    content.pop("versions", None)
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}, this code reads {FORMAT}; use the version "
            "that wrote it, or start over with --fresh"
        )
    return content


def run_of(target: Path) -> Path | None:
    """Return the run directory that a run or checkpoint path belongs to; None if to none."""
    if target.is_dir() and target.suffix != SHARDED:
        return target
    folder = target.resolve().parent
    return folder.parent if folder.name == FOLDER else None


def set_aside(run: Directory, written: tuple[str, ...]) -> str | None:
    """Move what an earlier run wrote into `replaced-NNN/`; return its name, None if nothing.

    `written` are names or patterns.
    """
    root = Path(run.path())
    present = sorted({path for pattern in written for path in root.glob(pattern)})
    if not present:
        return None
    taken = [int(path.name.removeprefix("replaced-")) for path in root.glob("replaced-[0-9]*")]
    name = f"replaced-{max(taken, default=-1) + 1:03d}"
    (root / name).mkdir()
    for path in present:
        path.replace(root / name / path.name)
    return name


def clean(run: Directory) -> None:
    """Delete what a killed writer left half-done; call when no other writer runs."""
    folder = Path((run / FOLDER).path())
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "FOLDER",
    "SHARDED",
    "Checkpoint",
    "CheckpointError",
    "clean",
    "digest",
    "latest",
    "load",
    "name_of",
    "names",
    "path_of",
    "resolve",
    "retain",
    "run_of",
    "set_aside",
]
