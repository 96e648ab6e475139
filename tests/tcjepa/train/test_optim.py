"""Schedules against a plain rewriting of I-JEPA's stateful classes; parameter groups."""

import math

import pytest
import torch
from torch import nn

from pipeline.settings import ConfigError, build
from tcjepa.train.config import TrainSection
from tcjepa.train.optim import apply, make_optimizer, make_schedule


def reference(steps, warmup):
    """Yield (lr, wd, ema) as I-JEPA's training loop sees them: two counters, one generator."""
    start, peak, final, wd, final_wd, ema, final_ema = 2e-4, 1e-3, 1e-6, 0.04, 0.4, 0.996, 1.0
    for i in range(steps):
        count = i + 1
        if count < warmup:
            lr = start + count / max(1, warmup) * (peak - start)
        else:
            p = (count - warmup) / max(1, steps - warmup)
            lr = max(final, final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * p)))
        decay = final_wd + (wd - final_wd) * 0.5 * (1.0 + math.cos(math.pi * count / steps))
        decay = max(final_wd, decay) if final_wd <= wd else min(final_wd, decay)
        yield lr, decay, ema + i * (final_ema - ema) / steps


@pytest.mark.parametrize(("steps", "warmup"), [(100, 20), (7, 0), (50, 1), (3, 2)])
def test_schedules_are_ijepas(steps, warmup):
    schedule = make_schedule(TrainSection(steps=steps, warmup_steps=warmup), samples=10)
    expected = reference(steps, warmup)
    for step, (lr, weight_decay, ema) in enumerate(expected):
        values = schedule.at(step)
        assert (values.lr, values.weight_decay, values.ema) == pytest.approx(
            (lr, weight_decay, ema), rel=1e-12
        )


def test_linear_weight_decay_ends_at_its_final_value():
    config = TrainSection(steps=10, warmup_steps=0, weight_decay_schedule="linear")
    schedule = make_schedule(config, samples=10)
    assert schedule.at(4).weight_decay == pytest.approx(0.22)
    assert schedule.at(9).weight_decay == pytest.approx(0.4)


def test_lengths_in_epochs_are_fractions_of_the_data():
    config = TrainSection(epochs=50, warmup_epochs=10, batch=2048)
    schedule = make_schedule(config, samples=1_000_000)
    assert (schedule.steps, schedule.warmup_steps) == (24414, 4882)
    by_share = make_schedule(TrainSection(epochs=50, batch=2048), samples=1_000_000)
    assert by_share.warmup_steps == 4882


def test_linear_scaling_is_an_explicit_choice():
    plain = make_schedule(TrainSection(steps=10, batch=256), samples=10)
    scaled = make_schedule(TrainSection(steps=10, batch=256, scale_lr=True), samples=10)
    assert plain.lr == 1e-3
    assert (scaled.lr, scaled.start_lr, scaled.final_lr) == pytest.approx(
        (1e-3 / 8, 2e-4 / 8, 1e-6 / 8)
    )


def test_a_run_too_short_says_which_key():
    with pytest.raises(ConfigError, match=r"train\.epochs=0\.5"):
        make_schedule(TrainSection(epochs=0.5), samples=100)
    with pytest.raises(ConfigError, match=r"warm-up \(10 steps\)"):
        make_schedule(TrainSection(epochs=1, warmup_steps=10, batch=10), samples=100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one"),
        ({"epochs": 1, "steps": 1}, "exactly one"),
        ({"steps": 5, "warmup_steps": 5}, r"train\.warmup_steps=5 must be smaller"),
        ({"steps": 5, "warmup_steps": 1, "warmup_epochs": 1}, "set one of them to null"),
        ({"steps": 5, "batch": 8, "micro_batch": 16}, "larger than"),
    ],
)
def test_impossible_combinations_name_the_keys(given, message):
    with pytest.raises(ConfigError, match=message):
        build(TrainSection, given)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.token = nn.Parameter(torch.zeros(1, 1, 3))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_no_weight_decay_on_biases_and_norms_and_nothing_frozen():
    model = Tiny()
    optimizer = make_optimizer(model, TrainSection(steps=1), torch.device("cpu"))
    decayed, exempt = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert decayed == {id(model.linear.weight), id(model.token)}
    assert exempt == {id(model.linear.bias), id(model.norm.weight), id(model.norm.bias)}
    apply(optimizer, make_schedule(TrainSection(steps=10), samples=1).at(9))
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.4)
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
