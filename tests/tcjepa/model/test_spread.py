"""VICReg's terms against loops, and what they do to a collapsed encoder."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.config import differences
from tcjepa.model.config import ModelConfig
from tcjepa.model.encoder import Encoder
from tcjepa.model.spread import spread_terms
from tests.tcjepa.train.runs import tiny_config

KEYS = ("init_std", "variance_weight", "covariance_weight")
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def slow_terms(features_BCD: Tensor) -> dict[str, Tensor]:
    """Return both terms by VICReg's equations, one pair of features at a time."""
    x = features_BCD.flatten(0, 1)
    count, width = x.shape
    mean = [sum(x[k, d] for k in range(count)) / count for d in range(width)]

    def covariance(i: int, j: int) -> Tensor:
        products = [(x[k, i] - mean[i]) * (x[k, j] - mean[j]) for k in range(count)]
        return torch.stack(products).sum() / (count - 1)

    stds = [(covariance(d, d) + 1e-4).sqrt() for d in range(width)]
    off = [covariance(i, j) ** 2 for i in range(width) for j in range(width) if i != j]
    return {
        "variance": torch.stack([(1 - std).clamp_min(0) for std in stds]).sum() / width,
        "covariance": torch.stack(off).sum() / width,
    }


@settings(max_examples=15)
@given(
    st.integers(1, 3), st.integers(2, 4), st.integers(2, 4), st.floats(0.1, 3), st.integers(0, 99)
)
def test_terms_equal_loops_in_value_and_gradient(
    images: int, patches: int, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, patches, width, dtype=torch.float64, generator=generator) * scale
    x.requires_grad_()
    fast, slow = spread_terms(x), slow_terms(x)
    for name, value in slow.items():
        torch.testing.assert_close(fast[name], value)
        own = torch.autograd.grad(fast[name], x, retain_graph=True)[0]
        expected = torch.autograd.grad(value, x, retain_graph=True)[0]
        torch.testing.assert_close(own, expected)


def test_collapsed_features_are_pushed_apart_and_spread_ones_left_alone() -> None:
    torch.manual_seed(0)
    collapsed = (torch.ones(4, 9, 16) + 1e-3 * torch.randn(4, 9, 16)).requires_grad_()
    terms = spread_terms(collapsed)
    assert terms["variance"] > 0.9
    after = collapsed - torch.autograd.grad(terms["variance"], collapsed)[0]
    assert after.flatten(0, 1).std(0).mean() > collapsed.flatten(0, 1).std(0).mean()

    spread = 2 * torch.linalg.qr(torch.randn(65, 17))[0][:, :16].view(5, 13, 16) * math.sqrt(65)
    spread = (spread - spread.mean((0, 1))).requires_grad_()
    assert not torch.autograd.grad(spread_terms(spread)["variance"], spread)[0].any()


def test_one_direction_costs_covariance() -> None:
    torch.manual_seed(0)
    along = torch.randn(4, 9, 1).expand(4, 9, 16)
    apart = torch.randn(4, 9, 16)
    assert spread_terms(along)["covariance"] > 5 * spread_terms(apart)["covariance"]


def test_micro_batches_are_refused(tmp_path) -> None:
    tiny_config(tmp_path, "model.variance_weight=1")
    with pytest.raises(ConfigError, match=r"train\.micro_batch=3: model\.variance_weight"):
        tiny_config(tmp_path, "model.variance_weight=1", "train.micro_batch=3")
    # A baseline reads neither weight.
    own = ["train.objective=supervised", "train.labels=[colour]"]
    tiny_config(tmp_path, "model.covariance_weight=1", "train.micro_batch=3", *own)


def test_init_std_scales_what_positions_compete_with() -> None:
    torch.manual_seed(0)
    published = Encoder("vit_base_patch16_gap_224", TINY)
    torch.manual_seed(0)
    wide = Encoder("vit_base_patch16_gap_224", TINY, init_std=0.06)
    for name in ("patch_embed.proj.weight", "blocks.1.mlp.fc2.weight"):
        torch.testing.assert_close(
            wide.vit.get_parameter(name), 3 * published.vit.get_parameter(name)
        )
    torch.testing.assert_close(wide.vit.pos_embed, published.vit.pos_embed)
    assert ModelConfig(encoder_kwargs=TINY).init_std == 0.02


def test_a_checkpoint_from_before_these_keys_is_resumed(tmp_path) -> None:
    new = tiny_config(tmp_path).model_dump(mode="json")
    old = {**new, "model": {k: v for k, v in new["model"].items() if k not in KEYS}}
    assert differences(old, new) == []
    other = tiny_config(tmp_path, "model.init_std=0.06").model_dump(mode="json")
    assert differences(old, other) == ["model.init_std: 0.02 → 0.06"]
