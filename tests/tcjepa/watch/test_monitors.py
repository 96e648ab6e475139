"""Monitors on held images say what whole forward passes would; what is due when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.text import swap_captions
from tcjepa.train import monitors
from tcjepa.train.config import TrainSection
from tcjepa.train.distributed import World
from tcjepa.train.run import Run
from tcjepa.watch.speed import Utilisation
from tests.tcjepa.tiny_text import save_byt5
from tests.tcjepa.train.runs import tiny_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def test_the_text_gain_is_that_of_two_whole_forward_passes(tmp_path: Path) -> None:
    run = Run(tiny_config(tmp_path), CPU, lambda _: None)
    held = [inputs for inputs, _ in run.inputs.micro_batches(next(run.batches()), 0)]
    readings = monitors.measure(run.model, held)
    with torch.no_grad():
        right, swapped = (
            torch.stack([run.model(i.images, i.masks, text(i.text)).terms["predict"] for i in held])
            for text in (lambda own: own, swap_captions)
        )
    assert readings["monitor/text_gain"] == pytest.approx(
        float(swapped.mean() - right.mean()), abs=1e-6
    )
    share = readings["monitor/text_gain"] / float(right.mean())
    assert readings["monitor/text_gain_share"] == pytest.approx(share, abs=1e-6)


@given(st.integers(1, 200), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7))
def test_each_thing_is_due_at_its_multiples_and_at_the_end_and_monitors_at_once(
    step: int, monitor: int, probe: int, attention: int
) -> None:
    section = TrainSection(
        steps=200, monitor_every=monitor, probe_every=probe, attention_every=attention
    )
    every = {"monitor": monitor, "probe": probe, "attention": attention}
    due = monitors.due(section, step, last=False)
    assert due == {
        name for name, n in every.items() if n and (step % n == 0 or (step, name) == (1, "monitor"))
    }
    assert monitors.due(section, 199, last=True) == {name for name, n in every.items() if n}


def test_flops_grow_with_the_words_of_the_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    run = Run(config, CPU, lambda _: None)
    speed = Utilisation(config, CPU, run.inputs._text)
    short, long = (speed.flops([[text] * 2]) for text in ("red", "a red star on a blue floor"))
    none = Utilisation(tiny_config(tmp_path, "model.text=null"), CPU, None).flops([[]])
    assert none < short < long
    speed.look_at([["red"]])
    assert speed.measure(100.0) == {}  # no peak is known for a CPU


def test_utilisation_needs_no_fast_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcjepa.watch.speed.peak_flops", lambda _: 989e12)
    config = tiny_config(tmp_path, f"text.encoder={save_byt5(tmp_path / 'bytes')}")
    run = Run(config, CPU, lambda _: None)
    run.measure({"monitor"})
    assert run.progress(8, 1.0, 0.0)["mfu"] > 0
