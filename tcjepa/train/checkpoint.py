"""Checkpoints: written whole or not at all, verified when read, kept by a retention rule.

A checkpoint is `step-00000100.pt` plus `step-00000100.json`. The second file is the commit mark: it
is written last and holds the first one's SHA-256, since `torch.load` does not notice flipped bits.
The `.pt` file is a dict of plain values and tensors that `torch.load(weights_only=True)` accepts.

No random-generator state is stored for the training stream: the loop seeds every step from (seed,
step, rank), so the step number *is* that state, for any number of ranks.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tcjepa
from pipeline.settings import ConfigError
from pipeline.storage import TEMPORARY_PREFIX, Directory

FORMAT = 1
FOLDER = "checkpoints"


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

    def save(self, run: Directory, keep: int) -> str:
        """Write the checkpoint into `run`, delete all but the newest `keep`, return its name."""
        folder = run / FOLDER
        name = f"step-{self.step:08d}"
        content = {
            "format": FORMAT,
            **{key: getattr(self, key) for key in self.__dataclass_fields__},
            "versions": versions(),
        }
        temporary = folder.temporary(f"{name}.pt")
        try:
            torch.save(content, temporary)
            digest, size = _digest(temporary), temporary.stat().st_size
            folder.commit(temporary, f"{name}.pt")
        finally:
            temporary.unlink(missing_ok=True)
        folder.write_json(f"{name}.json", {"step": self.step, "sha256": digest, "bytes": size})
        for old in names(run)[:-keep]:
            folder.remove(f"{old}.json")  # the mark first: half a deletion is no checkpoint
            folder.remove(f"{old}.pt")
        return name


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


def load(path: Path) -> Checkpoint:
    """Read one checkpoint file onto the CPU; raises `CheckpointError` if it is not sound."""
    mark = Directory(path.parent)
    name = path.stem
    try:
        if mark.exists(f"{name}.json"):
            expected = mark.read_json(f"{name}.json")
            if path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path} is torn: its size differs from {name}.json")
            if _digest(path) != expected["sha256"]:
                raise CheckpointError(f"{path} is damaged: its SHA-256 differs from {name}.json")
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content.pop("format", None)
        content.pop("versions", None)
        if found != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {found}, this code reads {FORMAT}; use the version "
                "that wrote it, or start over with --fresh"
            )
        return Checkpoint(**content)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def latest(run: Directory, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest sound checkpoint of a run; None if it never saved one.

    Each unsound one is reported through `warn` and passed over. Raises `CheckpointError` if there
    are checkpoints but none is sound: starting over silently would throw the run away.
    """
    found = names(run)
    for name in reversed(found):
        try:
            return load(Path((run / FOLDER).path(f"{name}.pt")))
        except CheckpointError as error:
            warn(f"{error}; trying the one before")
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {(run / FOLDER).url} is readable; restore "
            "one from a copy, or start over with --fresh"
        )
    return None


def resolve(target: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint that a user named: a `.pt` file, or a run directory's newest.

    Raises `CheckpointError` if there is none.
    """
    if target.is_file():
        return load(target)
    checkpoint = latest(Directory(target), warn) if target.is_dir() else None
    if checkpoint is None:
        raise CheckpointError(
            f"{target} is neither a checkpoint file nor a run directory with {FOLDER}/step-*.pt"
        )
    return checkpoint


def set_aside(run: Directory, written: tuple[str, ...]) -> str | None:
    """Move what an earlier run wrote into `replaced-NNN/`; return its name, None if nothing."""
    root = Path(run.path())
    present = [root / name for name in written if (root / name).exists()]
    if not present:
        return None
    name = f"replaced-{len(list(root.glob('replaced-*'))):03d}"
    (root / name).mkdir()
    for path in present:
        path.replace(root / name / path.name)
    return name


def clean(run: Directory) -> None:
    """Delete temporary files that a killed writer left; call when no other writer runs."""
    for path in Path((run / FOLDER).path()).glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "FOLDER",
    "Checkpoint",
    "CheckpointError",
    "clean",
    "latest",
    "load",
    "names",
    "resolve",
    "set_aside",
]
