"""What DDP relies on: every trained parameter takes part in every step, whatever the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tcjepa.train.distributed import World
from tcjepa.train.loop import optimizer_step
from tcjepa.train.run import Run
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
