"""Saving in the background, sharded folders, what is kept, what a full disk does."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.settings import build
from pipeline.storage import Directory
from tcjepa.train import checkpoint, sharded
from tcjepa.train.checkpoint import Checkpoint, CheckpointError
from tcjepa.train.config import TrainSection
from tcjepa.train.distributed import World
from tcjepa.train.saver import SaveError, Saver

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def described(step: int) -> Checkpoint:
    loader = {"seed": 0, "epoch": 1, "consumed": 5, "fingerprint": "abc"}
    return Checkpoint(step, {}, {}, loader, {"train": {"lr": 0.1}}, 1.5, 100)


def make_saver(run: Path, **train: Any) -> Saver:
    section = build(TrainSection, {"steps": 100, **train})
    return Saver(Directory(run), section, CPU, is_sharded=False)


def test_what_is_written_in_the_background_is_the_state_at_the_call(tmp_path: Path) -> None:
    model, optimizer = trained()
    weight = model.weight.detach().clone()
    saver = make_saver(tmp_path, async_save=True)
    saver.save(described(1), model, optimizer)
    with torch.no_grad():
        model.weight.fill_(7.0)  # training goes on
        optimizer.state[model.weight]["exp_avg"].fill_(7.0)
    saver.close()
    found = checkpoint.resolve(tmp_path, print)
    assert torch.equal(found.model["weight"], weight)
    assert not (found.optimizer["state"][0]["exp_avg"] == 7.0).any()


def test_there_is_never_a_second_writer(tmp_path: Path) -> None:
    model, optimizer = trained()
    saver = make_saver(tmp_path, async_save=True, keep_checkpoints=50)
    most = 0
    for step in range(1, 20):
        saver.save(described(step), model, optimizer)
        most = max(most, sum(thread.name == "checkpoint" for thread in threading.enumerate()))
    saver.close()
    assert most == 1
    assert len(checkpoint.names(Directory(tmp_path))) == 19


@pytest.mark.parametrize("async_save", [False, True])
def test_a_failed_write_is_told_and_the_one_before_stays(tmp_path: Path, async_save: bool) -> None:
    model, optimizer = trained()
    saver = make_saver(tmp_path, async_save=async_save)
    saver.save(described(1), model, optimizer)
    saver.close()
    # A folder in the file's place: the rename fails, as it would without the right to write.
    (tmp_path / "checkpoints" / "step-00000002.pt" / "x").mkdir(parents=True)
    with pytest.raises(SaveError, match="step 2 could not be written"):
        saver.save(described(2), model, optimizer)
        saver.close()
    saver.close()  # told once
    assert checkpoint.resolve(tmp_path, print).step == 1
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_multiples_are_kept_besides_the_newest(tmp_path: Path) -> None:
    model, optimizer = trained()
    saver = make_saver(tmp_path, keep_checkpoints=2, keep_every_steps=10)
    for step in (5, 10, 15, 20, 25, 30, 35):
        saver.save(described(step), model, optimizer)
    kept = checkpoint.names(Directory(tmp_path))
    assert kept == [f"step-000000{step}" for step in (10, 20, 30, 35)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run with checkpoints 1 and 2 in sharded form, written by a single gloo rank."""
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model, optimizer = trained()
    try:
        for step in (1, 2):
            sharded.write(
                described(step),
                sharded.flat_state(model, optimizer),
                sharded.parameter_names(model, optimizer),
                Directory(tmp_path),
                torch.distributed.group.WORLD,
            )
    finally:
        torch.distributed.destroy_process_group()
    return tmp_path


def test_a_sharded_folder_loads_whole_into_one_process(folder: Path) -> None:
    model, optimizer = trained()
    for target in (folder, folder / "checkpoints" / "step-00000002.dcp"):
        found = checkpoint.resolve(target, print)
        assert (found.step, found.loader, found.config) == (
            2,
            described(2).loader,
            {"train": {"lr": 0.1}},
        )
        other = torch.nn.Linear(4, 3)
        fresh = torch.optim.AdamW(other.parameters())
        sharded.load_whole(found, other, fresh)
        assert torch.equal(other.weight, model.weight)
        for own, expected in zip(fresh.state.values(), optimizer.state.values(), strict=True):
            for key, value in expected.items():
                assert torch.equal(own[key], value)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "metadata", "uncommitted"])
def test_a_damaged_folder_falls_back_to_the_one_before(folder: Path, damage: str) -> None:
    newest = folder / "checkpoints" / "step-00000002.dcp"
    victim = newest / (".metadata" if damage == "metadata" else "__0_0.distcp")
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "uncommitted":
        newest.with_suffix(".json").unlink()
        with pytest.raises(CheckpointError, match="never finished"):
            checkpoint.resolve(newest, print)
    elif damage == "truncate":
        victim.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    lines: list[str] = []
    found = checkpoint.latest(Directory(folder), lines.append)
    assert found is not None
    assert found.step == 1
    assert ("step-00000002" in "".join(lines)) == (damage != "uncommitted")


def test_a_killed_sharded_writer_leaves_nothing_that_counts(folder: Path) -> None:
    half = folder / "checkpoints" / ".tmp-step-00000003.dcp"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(os.urandom(10))
    assert checkpoint.names(Directory(folder)) == ["step-00000001", "step-00000002"]
    checkpoint.clean(Directory(folder))
    assert not half.exists()
