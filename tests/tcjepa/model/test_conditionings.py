"""Every allowed combination of conditioning, fusion, loss, regularizer and masks takes a step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from pipeline.settings import ConfigError, build
from tcjepa.masks import MaskConfig, sample_masks
from tcjepa.model.conditioner import Conditioner
from tcjepa.model.config import ModelConfig, TextConditioning
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextBatch, swap_captions

LOSSES, SAMPLERS = ("l2", "smooth_l1"), ("uniform", "reference")
STEP_WITHOUT = ("l2", "uniform", None)  # loss, sampler, captions
CONDITIONINGS = ("word_attention", "caption_attention", "adaln", "feature", "sequence")
WORD_ATTENTION = [
    {"conditioning": "word_attention", "fusion": fusion, "fuse": fuse, "sparsity": sparsity, **more}
    for fusion, fuse, sparsity, more in itertools.product(
        ("max", "mean", "attention"),
        ("before_mlp", "after_mlp"),
        ("rectified", "entropy", "none"),
        ({}, {"layers": [1]}, {"layers": [0], "heads": 2}),
    )
]
UNREGULARIZED = {"sparsity": "none"}
BASELINES = [
    {"conditioning": "caption_attention"},
    {"conditioning": "caption_attention", "layers": [0], "heads": 2},
    {"conditioning": "adaln"},
    {"conditioning": "adaln", "fusion": "mean", "layers": [1]},
    {"conditioning": "feature"},
    {"conditioning": "feature", "fusion": "mean"},
    {"conditioning": "sequence"},
]
KEYS: list[dict[str, Any] | None] = [
    *WORD_ATTENTION, *({**keys, **UNREGULARIZED} for keys in BASELINES), None
]  # fmt: skip


def _name(keys: dict[str, Any] | None) -> str:
    return "I-JEPA" if keys is None else "-".join(str(value) for value in keys.values())


@pytest.mark.parametrize("keys", KEYS, ids=_name)
def test_every_allowed_combination_takes_a_step(make_config, images, text, keys):
    conditioning = None if keys is None else build(TextConditioning, keys)
    masks = {name: sample_masks(MaskConfig(sampler=name), (8, 8), 4, 0, 0) for name in SAMPLERS}
    for share in (False, True):
        torch.manual_seed(0)
        model = TCJEPA(make_config(conditioning, share_context=share), text.words.shape[2])
        for loss, sampler, given in [*itertools.product(LOSSES, SAMPLERS, [text]), STEP_WITHOUT]:
            model.config = model.config.model_copy(update={"prediction_loss": loss})
            model.zero_grad()
            out = model(images, masks[sampler], given)
            assert torch.isfinite(out.loss)
            out.loss.backward()
            _assert_all_alive(model, captioned=given is not None)


def _assert_all_alive(model: TCJEPA, captioned: bool) -> None:
    """No parameter may go without a gradient, or DDP and FSDP2 would have to look for it.

    Its gradient may be zero only where nothing can flow: keys and queries of a text of one word.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, f"{name} is no part of the graph"
        assert torch.isfinite(parameter.grad).all(), name
        alone = not captioned and (".key." in name or ".query." in name)
        assert alone or parameter.grad.any(), f"{name} has no gradient"


@pytest.fixture(params=itertools.product(CONDITIONINGS, (False, True)), ids=str)
def model(request, make_config, text):
    torch.manual_seed(0)
    conditioning, share = request.param
    keys = TextConditioning(conditioning=conditioning, sparsity="none")
    return TCJEPA(make_config(keys, share_context=share), text.words.shape[2])


def test_every_conditioning_reads_the_captions_of_its_own_image(model, images, masks, text):

    def predictions(given: TextBatch | None) -> torch.Tensor:
        return model.predictor(model.encoder(images, masks.context), masks, given)[0].detach()

    own, swapped, none = predictions(text), predictions(swap_captions(text)), predictions(None)
    for b in range(4):
        assert torch.allclose(own[b], none[b]) == (b >= 2)
        assert torch.allclose(own[b], swapped[b]) == (b == 2), "the last gets another's captions"
    alone = TextBatch(text.words[:3], text.valid[:3], torch.tensor([[2, 0, 1]] + [[-1] * 3] * 3))
    torch.testing.assert_close(predictions(alone)[0], own[0], msg="order of captions matters")


def test_text_off_is_the_predictor_without_its_text_modules(make_config, text):
    plain = {name for name, _ in TCJEPA(make_config(None)).named_parameters()}
    for conditioning in CONDITIONINGS:
        keys = TextConditioning(conditioning=conditioning, sparsity="none")
        model = TCJEPA(make_config(keys), text.words.shape[2])
        added = {name for name, _ in model.named_parameters()} - plain
        assert added and all(
            name.startswith(("predictor.conditioners", "predictor.embed_text", "predictor.null"))
            for name in added
        )


def test_one_layer_has_one_conditioner(make_config, images, masks, text):
    model = TCJEPA(make_config(TextConditioning(layers=(1,))), text.words.shape[2])
    assert len(model.predictor.conditioners) == 1
    assert isinstance(model.predictor.conditioners[0], Conditioner)
    _, attentions, _ = model.predictor(model.encoder(images, masks.context), masks, text)
    assert len(attentions) == 1
    assert model(images, masks, text).terms["consistency"] == 0, "one layer agrees with itself"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"conditioning": "adaln"}, r"sparsity=rectified .*conditioning=adaln set sparsity=none"),
        ({"conditioning": "caption_attention", "sparsity": "entropy"}, "sparsity=entropy"),
        (
            {"conditioning": "sequence", "sparsity": "none", "layers": [0]},
            "layers=.*set layers=all",
        ),
        ({"conditioning": "feature", "sparsity": "none", "heads": 2}, "heads=2 .*set heads=1"),
        (
            {"conditioning": "adaln", "sparsity": "none", "fusion": "attention"},
            "fusion=max or mean",
        ),
        ({"conditioning": "caption_attention", "sparsity": "none", "fusion": "mean"}, "fusion=max"),
        ({"conditioning": "sequence", "sparsity": "none", "fuse": "after_mlp"}, "fuse=before_mlp"),
        ({"layers": []}, "layers"),
        ({"layers": [0, 0]}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"layers": [6]}, r"text\.layers \[6\].*predictor\.depth 6 the last is 5"),
        ({"layers": "last"}, "layers"),
        ({"conditioning": "film"}, "conditioning"),
    ],
)
def test_combinations_that_mean_nothing_are_refused_by_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(ModelConfig, {"text": keys})
