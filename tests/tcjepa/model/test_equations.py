"""The model in float64 against `reference.py`: every term, and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tcjepa.masks import Masks
from tcjepa.model.config import ModelConfig, PredictorConfig, TextConditioning
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextBatch
from tests.tcjepa.model.reference import Outcome, Reference, Sample, Setting

WIDTH, TEXT_WIDTH, GRID = 8, 6, 4
ENCODER = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}

shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "context": st.integers(1, 3),
        "blocks": st.integers(1, 2),
        "target": st.integers(1, 2),
        "depth": st.integers(1, 2),
        "most_captions": st.integers(1, 8),
        "most_words": st.integers(1, 3),
        "share_context": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)


def _model(text: TextConditioning | None, shape: dict, loss: str = "l2") -> TCJEPA:
    torch.manual_seed(shape["seed"])
    predictor = PredictorConfig(
        width=WIDTH, depth=shape["depth"], heads=2, share_context=shape["share_context"]
    )
    config = ModelConfig(
        encoder_kwargs=ENCODER, predictor=predictor, text=text, prediction_loss=loss
    )
    model = TCJEPA(config, None if text is None else TEXT_WIDTH).double()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, and no two encoders alike
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _inputs(shape: dict) -> tuple[torch.Tensor, Masks, TextBatch]:
    """Random images, masks, and captions of which some have no words and some images none."""
    generator = torch.Generator().manual_seed(shape["seed"])
    B, N, S = shape["batch"], shape["most_captions"], shape["most_words"]
    C, M, T = shape["context"], shape["blocks"], shape["target"]
    images = torch.randn(B, 3, 8, 8, generator=generator, dtype=torch.float64)
    order = torch.stack([torch.randperm(GRID * GRID, generator=generator) for _ in range(B)])
    masks = Masks(order[:, :C], order[:, C : C + M * T].view(B, M, T))
    U = B * N
    lengths = torch.randint(0, S + 1, (U,), generator=generator)
    valid = torch.arange(S) < lengths.unsqueeze(1)
    words = torch.randn(U, S, TEXT_WIDTH, generator=generator, dtype=torch.float64)
    caption = torch.randint(0, U, (B, N), generator=generator)
    counts = torch.randint(0, N + 1, (B, 1), generator=generator)
    caption[torch.arange(N) >= counts] = -1
    return images, masks, TextBatch(words.requires_grad_(), valid, caption)


def _expected(model: TCJEPA, images: torch.Tensor, masks: Masks, text: TextBatch) -> Outcome:
    config, conditioning = model.config, model.config.text
    setting = Setting(
        depth=config.predictor.depth,
        heads=2,
        share_context=config.predictor.share_context,
        prediction_loss=config.prediction_loss,
        conditioning=None,
    )
    if conditioning is not None:
        setting.conditioning = conditioning.conditioning
        setting.word_heads, setting.fusion = conditioning.heads, conditioning.fusion
        setting.fuse, setting.sparsity = conditioning.fuse, conditioning.sparsity
        setting.temperature = conditioning.entropy_temperature
        if conditioning.conditioning not in ("feature", "sequence"):
            setting.layers = tuple(range(setting.depth))
            if conditioning.layers != "all":
                setting.layers = conditioning.layers
    samples = []
    for b in range(len(images)):
        context = model.encoder(images[b : b + 1], masks.context[b : b + 1])[0]
        with torch.no_grad():
            whole = model.target_encoder(images[b : b + 1])[0]
        captions = [
            text.words[u][text.valid[u]]
            for u in text.caption[b].tolist()
            if u >= 0 and text.valid[u].any()
        ]
        samples.append(
            Sample(
                list(zip(masks.context[b].tolist(), context, strict=True)),
                [
                    [(p, functional.layer_norm(whole[p], (8,))) for p in block.tolist()]
                    for block in masks.targets[b]
                ],
                captions,
            )
        )
    weights = dict(model.predictor.named_parameters())
    return Reference(weights, model.predictor.positions, setting).outcome(samples)


def _assert_equal(text: TextConditioning | None, shape: dict, loss: str = "l2") -> None:
    model = _model(text, shape, loss)
    images, masks, batch = _inputs(shape)
    images.requires_grad_()
    expected = _expected(model, images, masks, batch)
    found = model(images, masks, batch, regularizer_scale=0.7)
    total = expected.predict
    assert set(found.terms) == {
        name for name in ("predict", "sparse", "consistency") if getattr(expected, name) is not None
    }
    for name, value in found.terms.items():
        torch.testing.assert_close(value, getattr(expected, name), atol=1e-10, rtol=1e-10)
    if expected.sparse is not None:
        assert text is not None
        total = total + 0.7 * (
            text.sparsity_weight * expected.sparse + text.consistency_weight * expected.consistency
        )
    torch.testing.assert_close(found.loss, total, atol=1e-10, rtol=1e-10)

    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    named |= {"images": images, "words": batch.words}
    inputs = list(named.values())
    fast = torch.autograd.grad(found.loss, inputs, allow_unused=True)
    slow = torch.autograd.grad(total, inputs, allow_unused=True)
    for name, gradients in zip(named, zip(fast, slow, strict=True), strict=True):
        zero = torch.zeros_like(named[name])
        own, other = (zero if gradient is None else gradient for gradient in gradients)
        torch.testing.assert_close(
            own, other, atol=1e-10, rtol=1e-9, msg=lambda message, of=name: f"{of}: {message}"
        )


@settings(max_examples=15)
@given(
    shapes,
    st.fixed_dictionaries(
        {
            "fusion": st.sampled_from(["max", "mean", "attention"]),
            "fuse": st.sampled_from(["before_mlp", "after_mlp"]),
            "sparsity": st.sampled_from(["rectified", "entropy", "none"]),
            "heads": st.sampled_from([1, 2]),
        }
    ),
    st.sampled_from(["l2", "smooth_l1"]),
)
def test_word_attention_equals_its_equations(shape, keys, loss):
    _assert_equal(TextConditioning(**keys), shape, loss)


@settings(max_examples=8)
@given(shapes, st.data())
def test_word_attention_in_some_layers_equals_its_equations(shape, data):
    layers = data.draw(
        st.lists(st.integers(0, shape["depth"] - 1), min_size=1, unique=True).map(sorted)
    )
    _assert_equal(TextConditioning(layers=tuple(layers)), shape)


@settings(max_examples=15)
@given(
    shapes,
    st.sampled_from(
        [
            {"conditioning": "caption_attention"},
            {"conditioning": "caption_attention", "heads": 2, "layers": (0,)},
            {"conditioning": "adaln"},
            {"conditioning": "adaln", "fusion": "mean", "layers": (0,)},
            {"conditioning": "feature"},
            {"conditioning": "feature", "fusion": "mean"},
            {"conditioning": "sequence"},
            None,
        ]
    ),
)
def test_the_other_conditionings_and_ijepa_equal_loops(shape, keys):
    _assert_equal(None if keys is None else TextConditioning(**keys, sparsity="none"), shape)


@pytest.mark.parametrize("captions", range(1, 9))
def test_each_number_of_captions(captions):
    shape = {"batch": 2, "context": 2, "blocks": 2, "target": 1, "depth": 2, "most_words": 3}
    shape |= {"most_captions": captions, "share_context": False, "seed": captions}
    _assert_equal(TextConditioning(), shape)
