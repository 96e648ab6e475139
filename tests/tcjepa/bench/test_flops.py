"""The documented count of operations against what torch counts while it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from tcjepa.bench.flops import Captions, bare_encoder_flops, flops_per_image
from tcjepa.masks import MaskConfig, sample_masks
from tcjepa.model.config import ModelConfig
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextBatch

TINY = {
    "encoder_kwargs": {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2,
                       "num_heads": 2},
    "predictor": {"width": 16, "depth": 3},
}  # fmt: skip
MASKS = MaskConfig()
IMAGES, TEXT_WIDTH = 2, 24
NO_REGULARIZER: dict[str, Any] = {"sparsity": "none"}
KINDS: dict[str, dict[str, Any] | None] = {
    "I-JEPA": None,
    "word_attention": {},
    "after_mlp": {"fuse": "after_mlp"},
    "mean": {"fusion": "mean"},
    "two heads": {"heads": 2},
    "one layer": {"layers": [1]},
    "last layer": {"layers": [2], "sparsity": "none"},
    "caption_attention": {"conditioning": "caption_attention", **NO_REGULARIZER},
    "adaln": {"conditioning": "adaln", **NO_REGULARIZER},
    "feature": {"conditioning": "feature", **NO_REGULARIZER},
    "sequence": {"conditioning": "sequence", **NO_REGULARIZER},
}


def _text(images: int, captions: int, words: int, width: int, distinct: int) -> TextBatch:
    number = torch.arange(images * captions).view(images, captions) % distinct
    states = torch.randn(distinct, words, width)
    return TextBatch(states, torch.ones(distinct, words, dtype=torch.bool), number)


def _counted(model: TCJEPA, images: int, text: TextBatch | None) -> float:
    """Return what torch counts of a forward and backward pass, per image."""
    shape = model.encoder.shape
    side = shape.grid[0] * shape.patch[0]
    masks = sample_masks(MASKS, shape.grid, images, seed=0, step=0)
    # The plain attention: torch does not count the CPU's fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.randn(images, 3, side, side), masks, text).loss.backward()
    return counter.get_total_flops() / images


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_what_torch_counts(kind: str, shared: bool) -> None:
    predictor = {**TINY["predictor"], "share_context": shared}
    config = ModelConfig.model_validate({**TINY, "predictor": predictor, "text": KINDS[kind]})
    captions, words = 3, 10
    model = TCJEPA(config, TEXT_WIDTH)
    text = _text(IMAGES, captions, words, TEXT_WIDTH, distinct=3)
    found = flops_per_image(model, MASKS, Captions(captions, words, distinct=0.5))
    assert found.model == pytest.approx(_counted(model, IMAGES, text), rel=0.01)
    assert (found.conditioner == 0) == (kind == "I-JEPA")


@pytest.mark.parametrize("text", [None, {}])
def test_the_published_base_model(text: dict[str, Any] | None) -> None:
    config = ModelConfig.model_validate({"encoder_kwargs": {"num_heads": 12}, "text": text})
    model = TCJEPA(config, 768)
    found = flops_per_image(model, MASKS, Captions(8, 16))
    assert found.model == pytest.approx(_counted(model, 1, _text(1, 8, 16, 768, 8)), rel=0.01)


def test_a_bare_encoder() -> None:
    encoder = TCJEPA(ModelConfig.model_validate({**TINY, "text": None}), None)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    assert bare_encoder_flops(encoder) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    "encoder",
    [
        T5EncoderModel(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2,
                                num_heads=4)),
        BertModel(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2,
                             num_attention_heads=4, intermediate_size=64)),
    ],
)  # fmt: skip
def test_text_encoders(encoder: torch.nn.Module) -> None:
    model = TCJEPA(ModelConfig.model_validate(TINY), 32)
    found = flops_per_image(model, MASKS, Captions(3, 20, distinct=0.5), encoder)
    numbers = torch.randint(50, (3, 20))  # of two images with three captions, half of them equal
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        encoder(input_ids=numbers)
    assert found.text == pytest.approx(counter.get_total_flops() / 2, rel=0.02)
    assert found.total == found.model + found.text


def test_the_largest_model_is_counted_without_its_memory() -> None:
    config = ModelConfig.model_validate(
        {"encoder": "vit_large_patch16_224", "predictor": {"width": 384, "depth": 12},
         "encoder_kwargs": {"class_token": False, "global_pool": "avg"}, "text": None}
    )  # fmt: skip
    with torch.device("meta"):
        model = TCJEPA(config)
    found = flops_per_image(model, MASKS)
    # timm lists vit_large_patch16_224 with 61.6 GMACs, for one token more.
    assert found.target == pytest.approx(2 * 61.6e9, rel=0.01)
