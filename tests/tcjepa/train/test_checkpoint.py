"""Checkpoints: atomic, verified, retained, loadable without pickle."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.storage import Directory
from tcjepa.train import checkpoint
from tcjepa.train.checkpoint import Checkpoint, CheckpointError


def make(step: int) -> Checkpoint:
    torch.manual_seed(step)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return Checkpoint(
        step=step,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        loader={"seed": 0, "epoch": 1, "fingerprint": "abc"},
        config={"train": {"betas": [0.9, 0.999], "clip_grad": None}},
        minutes=1.5,
        images=100,
    )


def test_round_trip_is_exact_and_weights_only(tmp_path: Path):
    run = Directory(tmp_path)
    saved = make(3)
    name = saved.save(run, keep=2)
    path = tmp_path / "checkpoints" / f"{name}.pt"
    assert torch.load(path, weights_only=True)["versions"]["torch"]
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.loader, loaded.config) == (3, saved.loader, saved.config)
    for key, value in saved.model.items():
        assert torch.equal(loaded.model[key], value)
    model = torch.nn.Linear(4, 4)
    torch.optim.AdamW(model.parameters()).load_state_dict(loaded.optimizer)


def test_only_the_newest_are_kept(tmp_path: Path):
    run = Directory(tmp_path)
    for step in (1, 2, 3, 20):
        make(step).save(run, keep=2)
    assert checkpoint.names(run) == ["step-00000003", "step-00000020"]
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert files == {f"step-000000{n}.{e}" for n in ("03", "20") for e in ("pt", "json")}


def test_damaged_checkpoints_never_crowd_out_sound_ones(tmp_path: Path):
    """A run that resumes before damaged checkpoints writes lower step numbers than theirs."""
    run = Directory(tmp_path)
    for step in (100, 200, 300):
        make(step).save(run, keep=3)
    for step in (200, 300):
        (tmp_path / "checkpoints" / f"step-{step:08d}.pt").write_bytes(b"damaged")
    assert (found := checkpoint.latest(run, lambda _: None)) is not None and found.step == 100
    make(150).save(run, keep=2)
    assert checkpoint.names(run) == ["step-00000100", "step-00000150"]
    assert (found := checkpoint.latest(run, lambda _: None)) is not None and found.step == 150


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "uncommitted"])
def test_a_damaged_file_falls_back_to_the_one_before(tmp_path: Path, damage: str):
    run = Directory(tmp_path)
    make(1).save(run, keep=2)
    make(2).save(run, keep=2)
    newest = tmp_path / "checkpoints" / "step-00000002.pt"
    data = bytearray(newest.read_bytes())
    if damage == "truncate":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    elif damage == "remove":
        newest.unlink()
    else:
        newest.with_suffix(".json").unlink()
    lines: list[str] = []
    found = checkpoint.latest(run, lines.append)
    assert found is not None
    assert found.step == 1
    assert ("step-00000002.pt" in "".join(lines)) == (damage != "uncommitted")


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path):
    run = Directory(tmp_path)
    assert checkpoint.latest(run, print) is None
    make(1).save(run, keep=2)
    (tmp_path / "checkpoints" / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="--fresh"):
        checkpoint.latest(run, lambda _: None)


def test_a_target_is_a_file_or_a_run(tmp_path: Path):
    make(1).save(Directory(tmp_path), keep=2)
    assert checkpoint.resolve(tmp_path, print).step == 1
    assert checkpoint.resolve(tmp_path / "checkpoints" / "step-00000001.pt", print).step == 1
    with pytest.raises(CheckpointError, match="neither"):
        checkpoint.resolve(tmp_path / "nowhere", print)


def test_setting_aside_keeps_the_earlier_run(tmp_path: Path):
    run = Directory(tmp_path)
    make(1).save(run, keep=2)
    (tmp_path / "shards").mkdir()
    assert checkpoint.set_aside(run, ("checkpoints", "log.jsonl")) == "replaced-000"
    assert (tmp_path / "replaced-000" / "checkpoints" / "step-00000001.pt").exists()
    assert (tmp_path / "shards").exists()
    assert checkpoint.latest(run, print) is None
    assert checkpoint.set_aside(run, ("checkpoints", "log.jsonl")) is None
    of_step = tmp_path / "evaluation-step-00000001.json"
    of_step.write_text("{}")
    assert checkpoint.set_aside(run, ("evaluation*.json",)) == "replaced-001"
    assert not of_step.exists() and (tmp_path / "replaced-001" / of_step.name).exists()
    for name in ("replaced-002", "replaced-003"):
        (tmp_path / "log.jsonl").write_text("")
        assert checkpoint.set_aside(run, ("log.jsonl",)) == name
        shutil.rmtree(tmp_path / "replaced-000", ignore_errors=True)
