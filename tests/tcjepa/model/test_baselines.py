"""Baselines against plain references, written as loops over images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.model.config import ContrastiveConfig, ModelConfig, PredictorConfig
from tcjepa.model.contrastive import MOST_SCALE, Contrastive
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.learner import Inputs
from tcjepa.model.supervised import Supervised, classes_in
from tcjepa.text import TextBatch
from tests.tcjepa.model.conftest import TEXT_WIDTH, TINY

OWN = ContrastiveConfig(width=8, text_width=8, text_depth=0)
DEEP = OWN.model_copy(update={"text_depth": 2})
LABELS = torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0]])
CLASSES = {"colour": 2, "shape": 3}


def config(own: ContrastiveConfig = OWN) -> ModelConfig:
    predictor = PredictorConfig(width=16, depth=2)
    return ModelConfig(encoder_kwargs=TINY, predictor=predictor, contrastive=own)


def contrastive(own: ContrastiveConfig = OWN) -> Contrastive:
    torch.manual_seed(3)
    model = Contrastive(config(own), TEXT_WIDTH).double()
    with torch.no_grad():
        model.log_scale.fill_(math.log(7.0))
    return model


def in_double(text: TextBatch) -> TextBatch:
    return TextBatch(text.words.double(), text.valid, text.caption)


def plain_loss(model: Contrastive, images: Tensor, text: TextBatch) -> Tensor:
    """InfoNCE over the images whose first caption has a word, one pair at a time."""
    seen, read = [], []
    for image, captions in zip(images, text.caption.tolist(), strict=True):
        words = text.words[captions[0]][text.valid[captions[0]]] if captions[0] >= 0 else []
        if len(words) == 0:
            continue
        features = model.encoder(image[None])[0]
        vector = sum(features) / len(features) @ model.project.weight.T
        seen.append(vector / vector.norm())
        side = model.text
        embedded = [side.embed(word) for word in words]
        mean = side.norm(sum(embedded) / len(embedded))
        vector = side.project(functional.gelu(side.hidden(mean)))
        read.append(vector / vector.norm())
    scale = model.log_scale.exp()[0]
    total = torch.zeros((), dtype=torch.float64)
    for one, other in ((seen, read), (read, seen)):
        for own, vector in enumerate(one):
            logits = torch.stack([scale * vector @ match for match in other])
            total = total + logits.logsumexp(0) - logits[own]
    return total / (2 * len(seen))


def test_the_contrastive_loss_is_info_nce_of_captioned_images(
    images: Tensor, text: TextBatch
) -> None:
    model, images, text = contrastive(), images.double(), in_double(text)
    output = model(images, text)
    expected = plain_loss(model, images, text)
    torch.testing.assert_close(output.loss, expected)
    assert output.monitors["captioned"] == 0.5  # of four images, one has no caption, one no word
    assert output.monitors["logit_scale"].item() == pytest.approx(7.0)

    output.loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and "log_scale" in ours
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("own", [OWN, DEEP])
def test_what_is_left_out_of_the_contrast_changes_nothing(
    own: ContrastiveConfig, images: Tensor, text: TextBatch
) -> None:
    """Images without words, padding behind words, and captions after the first."""
    model, images, text = contrastive(own), images.double(), in_double(text)
    expected = model(images, text).loss
    others = images.clone()
    others[2:] = torch.randn_like(others[2:])
    torch.testing.assert_close(model(others, text).loss, expected)
    words = torch.where(text.valid[:, :, None], text.words, 5.0)
    torch.testing.assert_close(
        model(images, TextBatch(words, text.valid, text.caption)).loss, expected
    )
    caption = text.caption.clone()
    caption[0, 1:] = torch.tensor([3, -1])
    again = TextBatch(text.words, text.valid, caption)
    torch.testing.assert_close(model(images, again).loss, expected)
    caption[0, 0] = 1
    assert not torch.isclose(
        model(images, TextBatch(text.words, text.valid, caption)).loss, expected
    )


def test_a_batch_without_captions_has_no_loss_and_no_gradient(
    images: Tensor, text: TextBatch
) -> None:
    model, text = contrastive(), in_double(text)
    none = TextBatch(text.words, text.valid, torch.full_like(text.caption, -1))
    output = model(images.double(), none)
    output.loss.backward()
    assert output.loss == 0 and output.monitors["captioned"] == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() and not g.any() for g in gradients)


def test_retrieval_is_the_share_of_images_whose_own_caption_is_nearest(
    images: Tensor, text: TextBatch
) -> None:
    model = contrastive()
    everyone = torch.tensor([[0], [1], [2], [3]])
    text = TextBatch(text.words.double(), text.valid, everyone)
    seen = functional.normalize(model.project(model.encoder(images.double()).mean(1)), dim=1)
    nearest = (seen @ functional.normalize(model.text(text)[0], dim=1).T).argmax(1)
    found = model(images.double(), text).monitors["retrieval"]
    assert found == (nearest == torch.arange(4)).double().mean()


@pytest.mark.parametrize(("given", "kept"), [(0.5, 1.0), (3.0, 3.0), (1e4, MOST_SCALE)])
def test_the_scale_of_cosines_is_bounded(given: float, kept: float) -> None:
    model = contrastive()
    with torch.no_grad():
        model.log_scale.fill_(math.log(given))
    model.finish_step(0.9)
    assert model.log_scale.exp().item() == pytest.approx(kept)


def test_the_supervised_loss_is_the_mean_cross_entropy_of_its_labels(images: Tensor) -> None:
    torch.manual_seed(4)
    model = Supervised(config(), CLASSES)
    with torch.no_grad():
        for head in model.heads:
            head.weight.mul_(50)  # or all classes are equally likely
    output = model(images, LABELS)
    total, hits = 0.0, dict.fromkeys(CLASSES, 0.0)
    for image, labels in zip(images, LABELS.tolist(), strict=True):
        features = model.encoder(image[None])[0]
        mean = sum(features) / len(features)
        for name, head, own in zip(CLASSES, model.heads, labels, strict=True):
            likely = head(mean).softmax(0)
            total += -math.log(likely[own].item()) / (len(images) * len(CLASSES))
            hits[name] += (likely.argmax() == own).item() / len(images)
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert {n: output.monitors[f"accuracy_{n}"].item() for n in CLASSES} == pytest.approx(hits)


def test_class_counts_are_read_back_from_weights() -> None:
    many = {
        str(number): 2 + number for number in range(12)
    }  # heads.10 comes before heads.2 as text
    assert classes_in(Supervised(config(), many).state_dict()) == list(many.values())
    assert classes_in(contrastive().state_dict()) == []


def test_all_objectives_draw_the_same_encoder() -> None:
    made = []
    for build in (
        lambda: TCJEPA(config(), TEXT_WIDTH),
        lambda: Contrastive(config(), TEXT_WIDTH),
        lambda: Supervised(config(), CLASSES),
    ):
        torch.manual_seed(5)
        made.append(build().encoder.state_dict())
    for other in made[1:]:
        assert all(torch.equal(value, other[name]) for name, value in made[0].items())


def test_only_a_jepa_has_a_target_and_a_text_gain(images: Tensor, text: TextBatch) -> None:
    baseline = Supervised(config(), CLASSES)
    assert not baseline.has_target and list(baseline.encoders()) == ["encoder"]
    inputs = Inputs(images, None, text, LABELS)
    assert baseline.caption_losses(inputs, {}) is None
    assert len(inputs.tensors()) == 5
    jepa = TCJEPA(config(), TEXT_WIDTH)
    assert jepa.has_target and jepa.kept_encoder is jepa.target_encoder
