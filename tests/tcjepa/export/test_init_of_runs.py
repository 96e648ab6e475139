"""`model.init` in training runs: read once, at the start, and never on resuming."""

from pathlib import Path

import pytest
import torch
import yaml

from pipeline.settings import ConfigError
from tcjepa.export.run import export
from tcjepa.model.encoder import Encoder
from tcjepa.train.distributed import World
from tcjepa.train.loop import train
from tcjepa.train.run import Run
from tests.tcjepa.train.runs import tiny_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def new_run(folder: Path, *overrides: str) -> tuple[Run, list[str]]:
    said: list[str] = []
    return Run(tiny_config(folder, *overrides), CPU, said.append), said


def same(ours: Encoder, theirs: Encoder) -> bool:
    others = theirs.state_dict()
    return all(torch.equal(value, others[name]) for name, value in ours.state_dict().items())


def test_a_run_starts_from_weights_and_resumes_without_them(tmp_path):
    first, _ = new_run(tmp_path, "train.steps=3")
    with first:
        train(first)
    path = tmp_path / "started.safetensors"
    export(tmp_path / "run", tmp_path / "out", "safetensors", which="context", say=lambda _: None)
    (tmp_path / "out" / "model.safetensors").rename(path)

    second = [f"run={tmp_path}/second", f"model.init={path}", "train.steps=5"]
    run, said = new_run(tmp_path, *second)
    assert same(run.model.encoder, first.model.encoder)
    assert same(run.model.target_encoder, first.model.encoder)
    assert any(f"tensors of {path}" in line for line in said)
    untouched, _ = new_run(tmp_path, f"run={tmp_path}/third", "train.steps=5")
    for name, value in untouched.model.predictor.state_dict().items():
        assert torch.equal(value, run.model.predictor.state_dict()[name])
    with run:
        train(run)

    path.unlink()
    again, said = new_run(tmp_path, *second)
    assert again.is_done and same(again.model.encoder, run.model.encoder)
    assert not any("model.init" in line for line in said)
    with pytest.raises(ConfigError, match=rf"model\.init: {path} → None"):
        new_run(tmp_path, second[0], second[2])
    with pytest.raises(ConfigError, match="does not exist"):
        new_run(tmp_path, f"run={tmp_path}/fourth", second[1])


def test_a_run_directory_is_a_source_with_both_encoders(tmp_path):
    first, _ = new_run(tmp_path, "train.steps=3")
    with first:
        train(first)
    assert not same(first.model.encoder, first.model.target_encoder)
    run, said = new_run(tmp_path, f"run={tmp_path}/second", f"model.init={tmp_path}/run")
    assert same(run.model.encoder, first.model.encoder)
    assert same(run.model.target_encoder, first.model.target_encoder)
    assert any("its own target encoder" in line for line in said)


def test_weights_that_do_not_fit_stop_a_run_before_its_first_step(tmp_path):
    first, _ = new_run(tmp_path, "train.steps=3")
    with first:
        train(first)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["model"]["encoder_kwargs"]["depth"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"missing: blocks\.1\..*\n.*depth: 1"):
        new_run(tmp_path, f"run={tmp_path}/second", f"model.init={tmp_path}/run")
    assert not (tmp_path / "second" / "checkpoints").exists()
