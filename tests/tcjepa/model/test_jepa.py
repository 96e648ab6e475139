import dataclasses

import pytest
import torch
from torch.nn import functional

from tcjepa.masks import Masks
from tcjepa.model.config import TextConditioning
from tcjepa.model.encoder import gather_patches
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.text import swap_captions

REGULARIZED = TextConditioning()


@pytest.fixture
def model(make_config, text):
    torch.manual_seed(0)
    return TCJEPA(make_config(REGULARIZED), text.words.shape[2])


def test_forward_gives_loss_terms_and_monitors(model, images, masks, text):
    out = model(images, masks, text, regularizer_scale=0.5)
    assert set(out.terms) == {"predict", "sparse", "consistency"}
    expected = out.terms["predict"] + 0.5 * (
        0.1 * out.terms["sparse"] + 0.5 * out.terms["consistency"]
    )
    torch.testing.assert_close(out.loss, expected)
    for name, value in out.monitors.items():
        assert value.shape == () and not value.requires_grad and torch.isfinite(value), name
    for name in (
        "positive_share",
        "positive_share_layer1",
        "attention_entropy",
        "wordless_patches",
    ):
        assert 0 <= out.monitors[name] <= 1
    out.loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad is None for p in model.target_encoder.parameters())


def test_readings_of_layers_have_the_layers_own_numbers(make_config, images, masks, text):
    model = TCJEPA(make_config(TextConditioning(layers=(1,))), text.words.shape[2])
    monitors = model(images, masks, text).monitors
    assert [name for name in monitors if "layer" in name] == ["positive_share_layer1"]


def test_prediction_equals_one_image_and_one_block_at_a_time(model, images, masks, text):
    model.eval()
    context = model.encoder(images, masks.context)
    whole, attentions, _ = model.predictor(context, masks, text)
    assert len(attentions) == 2
    for b in range(4):
        for m in range(4):
            one = Masks(masks.context[b : b + 1], masks.targets[b : b + 1, m : m + 1])
            own_text = dataclasses.replace(text, caption=text.caption[b : b + 1])
            alone = model.encoder(images[b : b + 1], one.context)
            predicted, _, _ = model.predictor(alone, one, own_text)
            torch.testing.assert_close(predicted[0, 0], whole[b, m], atol=1e-5, rtol=1e-4)


def test_without_text_config_it_is_ijepa(make_config, images, masks, text):
    model = TCJEPA(make_config(None))
    assert not model.predictor.conditioners and model.predictor.null_caption is None
    out = model(images, masks, text)
    assert set(out.terms) == {"predict"} and out.loss is out.terms["predict"]
    assert torch.equal(out.loss, model(images, masks).loss)


def test_without_regularizers(make_config, images, masks, text):
    model = TCJEPA(make_config(TextConditioning(sparsity="none")), text.words.shape[2])
    out = model(images, masks, text)
    assert set(out.terms) == {"predict"} and "positive_share" in out.monitors


@pytest.mark.parametrize("text_config", [REGULARIZED, TextConditioning(sparsity="entropy")])
def test_no_captions_at_all_train_the_null_token(make_config, images, masks, text, text_config):
    model = TCJEPA(make_config(text_config), text.words.shape[2])
    absent = dataclasses.replace(text, caption=torch.full((4, 3), -1))
    for given in (None, absent, dataclasses.replace(text, caption=torch.empty(4, 0).long())):
        model.zero_grad()
        out = model(images, masks, given)
        assert out.terms["sparse"] == 0 and out.terms["consistency"] == 0
        out.loss.backward()
        assert model.predictor.null_caption.grad.any()


def test_captions_reach_every_target_and_the_swap_changes_the_loss(model, images, masks, text):
    right = model(images, masks, text).terms["predict"]
    swapped = model(images, masks, swap_captions(text)).terms["predict"]
    assert right != swapped


def test_context_features_do_not_depend_on_the_targets(model, images, masks):
    model.eval()
    hidden = images.clone()
    patches = hidden.unfold(2, 4, 4).unfold(3, 4, 4)  # a view: (B, 3, 8, 8, 4, 4)
    for b in range(4):
        for cell in masks.targets[b].flatten().tolist():
            patches[b, :, cell // 8, cell % 8] = 99.0
    own = model.encoder(images, masks.context)
    torch.testing.assert_close(model.encoder(hidden, masks.context), own)
    full = model.encoder(images, torch.arange(64).expand(4, -1))
    torch.testing.assert_close(full, model.encoder(images))


def test_targets_are_normed_features_of_the_whole_image_without_gradient(model, images):
    features = model.targets(images)
    assert not features.requires_grad
    torch.testing.assert_close(features.mean(-1), torch.zeros(4, 64), atol=1e-5, rtol=0)
    expected = functional.layer_norm(model.target_encoder(images), (32,))
    torch.testing.assert_close(features, expected)


def test_update_target_is_the_moving_average(model):
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.update_target(0.9)
    for old, new, online in zip(
        before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
    model.update_target(1.0)
    model.train()
    assert not model.target_encoder.training and model.encoder.training


@pytest.mark.parametrize("sparsity", ["rectified", "entropy"])
def test_bfloat16_autocast_stays_close(make_config, images, masks, text, sparsity):
    torch.manual_seed(0)
    config = make_config(TextConditioning(sparsity=sparsity))
    model = TCJEPA(config, text.words.shape[2])
    full = model(images, masks, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(images, masks, text)
    assert half.loss.dtype == torch.float32
    for name, value in full.terms.items():
        torch.testing.assert_close(half.terms[name], value, rtol=0.03, atol=0.01)
    half.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_words_are_accepted(model, images, masks, text):
    half = dataclasses.replace(text, words=text.words.bfloat16())
    torch.testing.assert_close(
        model(images, masks, half).loss, model(images, masks, text).loss, rtol=0.01, atol=0
    )


def test_a_few_steps_learn_to_use_captions(make_config, images, masks, text):
    torch.manual_seed(0)
    model = TCJEPA(make_config(REGULARIZED), text.words.shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        out = model(images, masks, text)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        model.update_target(0.99)
        losses.append(out.loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_normalise_maps_imagenet_statistics_to_zero():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert normalise(image).abs().max() < 0.02 and normalise(image).dtype == torch.float32


def test_gather_patches_takes_rows():
    x, index = torch.randn(3, 5, 2), torch.tensor([[0, 4], [1, 1], [3, 2]])
    for b in range(3):
        assert torch.equal(gather_patches(x, index)[b], x[b, index[b]])
