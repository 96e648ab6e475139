"""The packaged presets against the paper's table (METHOD: arXiv 2605.03245), key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tcjepa
from pipeline.settings import load
from tcjepa.config import TrainConfig
from tcjepa.model.jepa import TCJEPA
from tcjepa.train.optim import make_schedule

CONFIGS = Path(tcjepa.__file__).parent / "configs"
#: Encoder depth, width, heads, patches per side; predictor depth and width; ImageNet-1k epochs.
PAPER = {
    "vit_b16": (12, 768, 12, 14, 6, 384, 600),
    "vit_l16": (24, 1024, 16, 14, 12, 384, 600),
    "vit_h14": (32, 1280, 16, 16, 12, 384, 300),
}
OURS = {"vit_s16": (12, 384, 6, 14, 6, 192, 600)}
#: Of the embedded world: no ViT of the paper's, no ImageNet.
SCENES = {"scenes_tiny", "scenes_mini", "scenes_small"}


def preset(name: str) -> TrainConfig:
    return load(TrainConfig, CONFIGS / f"{name}.yaml")


def test_the_presets_are_these() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*SCENES, *PAPER, *OURS}


@pytest.mark.parametrize(("name", "sizes"), (PAPER | OURS).items())
def test_sizes_are_the_papers(name: str, sizes: tuple[int, ...]) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = TCJEPA(config.model, 768)
    encoder, predictor = model.encoder.shape, model.predictor
    assert encoder.grid == (sizes[3], sizes[3])
    assert (encoder.depth, encoder.width, encoder.heads) == sizes[:3]
    assert (len(predictor.blocks), predictor.mask_token.shape[-1]) == sizes[4:6]
    # "As many heads as the encoder", and every predictor layer conditioned on text.
    assert config.model.predictor.heads is None
    assert len(predictor.conditioners) == sizes[4]
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert f"train.epochs={sizes[6]} train.warmup_epochs=40" in text


@pytest.mark.parametrize("name", PAPER | OURS)
def test_training_is_as_published(name: str) -> None:
    config = preset(name)
    train, masks, data = config.train, config.masks, config.data
    assert (train.batch, train.epochs, train.warmup_epochs) == (2048, 50, 10)
    assert not train.scale_lr
    assert train.clip_grad is None
    assert (data.image_size, data.crop_scale, data.captions_per_image) == (224, (0.3, 1.0), 8)
    assert (masks.sampler, masks.targets, masks.min_context) == ("uniform", 4, 10)
    assert (masks.context_scale, masks.target_scale) == ((0.85, 1.0), (0.15, 0.2))
    assert masks.target_aspect == (0.75, 1.5)
    text = config.model.text
    assert text is not None
    assert (text.sparsity_weight, text.consistency_weight) == (0.1, 0.5)
    assert (text.heads, text.fusion, text.layers, text.sparsity) == (1, "max", "all", "rectified")
    assert (config.model.prediction_loss, config.text.encoder) == ("l2", "t5-base")
    schedule = make_schedule(train, samples=2048 * 100)
    first, peak, last = (schedule.at(step) for step in (0, 999, 4999))
    assert first.lr == pytest.approx(2e-4 + 8e-4 / 1000)
    assert (peak.lr, last.lr) == (pytest.approx(1e-3), pytest.approx(1e-6))
    assert (first.weight_decay, last.weight_decay) == (pytest.approx(0.04, rel=1e-4), 0.4)
    assert (first.ema, last.ema) == (0.996, pytest.approx(1.0, abs=1e-6))


def test_the_demo_trains_on_a_cpu_and_says_what_is_its_own() -> None:
    config = preset("scenes_tiny")
    assert config.text.encoder == "hashed"
    assert config.train.parallel == "ddp"
    assert (config.train.start_lr, config.train.lr, config.train.ema) == (4e-4, 2e-3, 0.99)
