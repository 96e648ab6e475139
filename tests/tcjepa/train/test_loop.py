"""The loop's arithmetic: accumulation, ranks, divergence, monitors, time budget."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeline.settings import ConfigError
from tcjepa.train import checkpoint
from tcjepa.train.distributed import World
from tcjepa.train.log import STATUS_FILE, read
from tcjepa.train.loop import DivergedError, Ending, optimizer_step, train
from tcjepa.train.run import Run
from tests.tcjepa.train.runs import tiny_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def make_run(folder: Path, *overrides: str) -> Run:
    return Run(tiny_config(folder, *overrides), CPU, lambda _: None)


@pytest.mark.parametrize("text", ["model.text.sparsity=rectified", "model.text=null"])
def test_accumulated_gradients_are_the_big_batchs(tmp_path: Path, text: str) -> None:
    """Within 1e-6, also where micro-batches differ in size and in captioned images."""
    steps = []
    for micro in ("null", "4", "3", "1"):
        run = make_run(tmp_path, text, f"train.micro_batch={micro}")
        values = optimizer_step(run, next(run.batches()))
        gradients = [p.grad.flatten() for p in run.parameters if p.grad is not None]
        steps.append((values, torch.cat(gradients).double()))
    whole, gradient = steps[0]
    for values, other in steps[1:]:
        for key in ("loss", "grad_norm", *(key for key in whole if key in ("predict", "sparse"))):
            torch.testing.assert_close(values[key], whole[key], rtol=1e-6, atol=0)
        assert (other - gradient).norm() < 1e-6 * gradient.norm()


def test_divergence_names_step_samples_and_keys_and_saves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, "train.checkpoint_every_steps=2")
    broken = run.model.forward

    def forward(images, masks, text, scale):  # type: ignore[no-untyped-def]
        output = broken(images, masks, text, scale)
        loss = output.loss * (float("nan") if run.step == 5 else 1.0)
        return dataclasses.replace(output, loss=loss)

    run.model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=r"step 5: loss, grad_norm is not finite") as error:
        train(run)
    for part in ("since step 4", "train.lr", "train.clip_grad", "--fresh", "(row "):
        assert part in str(error.value)
    assert checkpoint.names(run.directory) == ["step-00000002", "step-00000004"]


def test_what_is_to_be_kept_is_saved_whatever_else_asks_for_checkpoints(tmp_path: Path) -> None:
    """The published presets save by the clock, which never strikes at a multiple."""
    run = make_run(tmp_path, "train.keep_every_steps=5", "train.keep_checkpoints=1")
    assert train(run) is Ending.FINISHED
    names = checkpoint.names(run.directory)
    assert names == ["step-00000005", "step-00000010", "step-00000012"]


def test_a_run_that_goes_on_in_another_precision_says_so(tmp_path: Path) -> None:
    train(make_run(tmp_path, "train.max_minutes=0.0001"))
    status = tmp_path / "run" / STATUS_FILE
    began = json.loads(status.read_text())
    assert began["precision"] == "fp32"
    said: list[str] = []
    Run(tiny_config(tmp_path), CPU, said.append)
    assert said == []
    status.write_text(json.dumps({**began, "precision": "bf16"}))
    Run(tiny_config(tmp_path), CPU, said.append)
    assert len(said) == 1 and "computed in bf16 so far and goes on in fp32" in said[0]


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, "train.clip_grad=1e-3")
    before = optimizer_step(run, next(run.batches()))["grad_norm"]
    after = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
    assert before > 1e-3
    assert after == pytest.approx(1e-3, rel=1e-2)


def test_the_last_line_has_every_monitor(tmp_path: Path) -> None:
    run = make_run(tmp_path, "train.monitor_every=4")
    assert train(run) is Ending.FINISHED
    records = read(Path(run.config.run))
    wanted = {"loss", "predict", "sparse", "consistency", "positive_share", "attention_entropy"}
    wanted |= {"wordless_patches", "lr", "weight_decay", "ema", "grad_norm"}
    assert all(wanted <= record.keys() for record in records)
    readings = {"monitor/encoder_rank", "monitor/target_encoder_rank", "monitor/encoder_std"}
    readings |= {"monitor/text_gain", "images_per_s", "data_wait", "memory_gib"}
    assert [r["step"] for r in records if readings <= r.keys()] == [0, 3, 7, 11]


def test_monitors_change_no_loss(tmp_path: Path) -> None:
    found = []
    for every in (0, 3):
        run = make_run(tmp_path, f"train.monitor_every={every}", f"run={tmp_path / str(every)}")
        train(run)
        found.append([record["loss"] for record in read(Path(run.config.run))])
    assert found[0] == found[1]


def test_a_time_budget_saves_and_the_next_call_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, "train.max_minutes=1e-9")
    assert train(run) is Ending.OUT_OF_TIME
    assert run.step == 2  # the first look at the clock is at log_every
    again = make_run(tmp_path)
    assert again.step == 2
    assert train(again) is Ending.FINISHED
    assert [record["step"] for record in read(tmp_path / "run")] == list(range(12))


def test_other_data_is_refused(tmp_path: Path) -> None:
    train(make_run(tmp_path, "train.max_minutes=1e-9"))
    index = tmp_path / "shards" / "index.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(index).slice(0, 30), index)
    with pytest.raises(ConfigError, match="trained on data"):
        make_run(tmp_path)
