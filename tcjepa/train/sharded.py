"""Checkpoints of sharded runs: a folder in the format of `torch.distributed.checkpoint` (DCP).

Every rank writes its own slices at the same time; the folder loads on any other number of ranks,
and whole into one process. Its tensors are `model.<parameter>` and
`optimizer.<parameter>.<state>`; everything else is in `plain.json`. The commit mark beside the
folder, written last, holds the SHA-256 of every file. DCP's own `.metadata` is a pickle: unlike a
`.pt` file, a folder from a stranger must not be opened.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.storage import TEMPORARY_PREFIX, Directory
from tcjepa.train import checkpoint
from tcjepa.train.checkpoint import Checkpoint, CheckpointError

PLAIN_FILE = "plain.json"

Flat = dict[str, Tensor]


def flat_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Flat:
    """Return the tensors of model and optimizer under flat names; they are not copied."""
    flat = {f"model.{key}": value for key, value in model.state_dict().items()}
    for name, parameter in zip(parameter_names(model, optimizer), _order(optimizer), strict=True):
        for key, value in optimizer.state[parameter].items():
            flat[f"optimizer.{name}.{key}"] = value
    return flat


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, in the order of its state dict's numbers."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in _order(optimizer)]


def split(flat: Flat, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (model state, optimizer state) of flat tensors; `names` as of `parameter_names`."""
    number = {name: i for i, name in enumerate(names)}
    model: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition(".")
        if kind == "model":
            model[rest] = value
        else:
            name, _, own = rest.rpartition(".")
            state.setdefault(number[name], {})[own] = value
    return model, {"state": state}


def write(
    found: Checkpoint,
    flat: Flat,
    names: Sequence[str],
    run: Directory,
    group: dist.ProcessGroup | None,
) -> None:
    """Write a checkpoint whose tensors are `flat`; every rank of `group` must call it.

    The tensors must be on the CPU and the group's backend must be gloo. Returns on rank 0 once the
    checkpoint is committed, on others once their files are written.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    root = Path((run / checkpoint.FOLDER).path())
    name = checkpoint.name_of(found.step)
    temporary = root / f"{TEMPORARY_PREFIX}{name}{checkpoint.SHARDED}"
    rank = dist.get_rank(group)
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier(group)
    save(flat, storage_writer=FileSystemWriter(temporary), process_group=group)
    written = {file.name: _described(file) for file in temporary.glob(f"__{rank}_*")}
    files: list[dict[str, Any] | None] = [None] * dist.get_world_size(group)
    dist.gather_object(written, files if rank == 0 else None, group=group)
    if rank != 0:
        return
    Directory(temporary).write_json(PLAIN_FILE, {**found.plain(), "parameters": list(names)})
    every = {key: value for own in files for key, value in (own or {}).items()}
    every |= {other: _described(temporary / other) for other in (PLAIN_FILE, ".metadata")}
    (run / checkpoint.FOLDER).remove(f"{name}.json")  # an unsound one of the same step
    (run / checkpoint.FOLDER).remove(f"{name}{checkpoint.SHARDED}")
    temporary.rename(root / f"{name}{checkpoint.SHARDED}")
    (run / checkpoint.FOLDER).write_json(f"{name}.json", {"step": found.step, "files": every})


def read_plain(folder: Path) -> dict[str, Any]:
    """Return what a folder holds besides tensors."""
    content: dict[str, Any] = Directory(folder).read_json(PLAIN_FILE)
    return content


def read(folder: Path) -> Flat:
    """Return all tensors of a folder, whole, in this process alone."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    flat: Flat = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in _entries(folder).items()
    }
    with warnings.catch_warnings():
        # That it reads in a single process is what was asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(flat, storage_reader=FileSystemReader(folder), no_dist=True)
    return flat


def read_slices(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read this rank's slices of a folder into a sharded model and its optimizer."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    names = parameter_names(model, optimizer)
    parameters = dict(zip(names, _order(optimizer), strict=True))
    flat = {f"model.{key}": value for key, value in model.state_dict().items()}
    for key, entry in _entries(folder).items():
        if key.startswith("optimizer."):
            like = parameters[key.removeprefix("optimizer.").rpartition(".")[0]]
            same = tuple(entry.size) == tuple(like.shape)
            empty = torch.empty(entry.size, dtype=entry.properties.dtype)
            flat[key] = torch.zeros_like(like.detach()) if same else empty
    load(flat, storage_reader=FileSystemReader(folder))
    _, state = split(flat, names)
    load_optimizer(optimizer, state)


def load_whole(found: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a whole checkpoint into a model and its optimizer, sharded or not."""
    own = model.state_dict()
    model.load_state_dict({key: _like(value, own.get(key)) for key, value in found.model.items()})
    state = {
        number: {key: _like(value, parameter) for key, value in values.items()}
        for (number, values), parameter in zip(
            sorted(found.optimizer["state"].items()), _order(optimizer), strict=True
        )
    }
    load_optimizer(optimizer, {"state": state})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments and step counts; the groups' settings stay, the schedules set them anyway."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _like(value: Tensor, own: Any) -> Tensor:
    """Return this rank's slice of a whole tensor if `own` is sharded; scalars stay whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    mesh = own.device_mesh
    local = value.to(own.device)
    return distribute_tensor(local, mesh, own.placements, src_data_rank=None)


def _entries(folder: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        return dict(FileSystemReader(folder).read_metadata().state_dict_metadata)
    except OSError as error:
        raise CheckpointError(f"{folder} has no readable .metadata: {error}") from error


def _order(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _described(file: Path) -> dict[str, Any]:
    return {"sha256": checkpoint.digest(file), "bytes": file.stat().st_size}


__all__ = ["flat_state", "load_whole", "parameter_names", "read", "read_plain", "read_slices"]
