"""What DDP relies on: every trained parameter takes part in every step, whatever the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tcjepa.train.distributed import World
from tcjepa.train.loop import optimizer_step
from tcjepa.train.run import Run
from tests.tcjepa.tiny_text import save_tokenizer, vocabulary_size
from tests.tcjepa.train.runs import tiny_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))
VARIANTS = [
    "model.text=null",
    "model.text.layers=[1]",
    "model.text.sparsity=none",
    "model.text.fusion=attention",
    "model.predictor.share_context=true",
    *(
        f"model.text.conditioning={kind} model.text.sparsity=none"
        for kind in ("caption_attention", "adaln", "feature", "sequence")
    ),
]


@pytest.mark.parametrize("captioned", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trained_parameter_has_a_gradient(
    tmp_path: Path, variant: str, captioned: bool
) -> None:
    run = Run(tiny_config(tmp_path, *variant.split()), CPU, lambda _: None)
    batch = next(run.batches())
    if not captioned:
        batch = replace(batch, captions=[[] for _ in batch.captions])
    optimizer_step(run, batch)
    missing = [
        name for name, p in run.model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert missing == []


def test_backward_keeps_the_digits_that_forward_kept(tmp_path: Path) -> None:
    """Under autocast, products of the backward pass would be cast as those of the forward are."""
    overrides = ("train.precision=bf16", "model.variance_weight=1", "model.covariance_weight=0.1")
    run = Run(tiny_config(tmp_path, *overrides), CPU, lambda _: None)
    forward, backward = [], []
    block = run.model.encoder
    block.register_forward_hook(lambda *_: forward.append(torch.is_autocast_enabled("cpu")))
    for parameter in run.parameters:
        parameter.register_hook(lambda _: backward.append(torch.is_autocast_enabled("cpu")))
    optimizer_step(run, next(run.batches()))
    assert forward and all(forward)
    assert backward and not any(backward)


def test_arms_of_a_seed_begin_with_one_encoder(tmp_path: Path) -> None:
    """Whatever the text encoder draws when it is loaded, as one does that lacks a pooler."""
    sizes = BertConfig(
        vocab_size=vocabulary_size(["a"]), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    BertForMaskedLM(sizes).save_pretrained(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert", ["a"], end_only=False)
    weights = []
    for own in ("model.text=null", "text.encoder=hashed", f"text.encoder={tmp_path / 'bert'}"):
        run = Run(tiny_config(tmp_path, own), CPU, lambda _: None)
        weights.append(torch.cat([p.flatten() for p in run.model.encoder.parameters()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
