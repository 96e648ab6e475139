"""Prediction errors image by image, against the model's own loss; who gets whose captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.evaluate.agreement import (
    GAIN,
    NONE,
    RIGHT,
    SWAPPED,
    NoAgreementError,
    agree,
    derangement,
    prediction_errors,
)
from tcjepa.masks import MaskConfig, Masks, sample_masks
from tcjepa.model.jepa import normalise
from tcjepa.text import HashedEncoder, TextConfig
from tests.tcjepa.evaluate.captioned import GRID, WORDS, images_of, tiny_model

CPU = torch.device("cpu")
TEXT = HashedEncoder(TextConfig(width=WORDS))
MASKS = MaskConfig(min_context=2)
COUNT = 70  # more than masks are drawn for at a time


def some_images(count: int = COUNT):
    captions = [[f"a star number {n}", "a ring"][: 1 + n % 2] for n in range(count)]
    return images_of(captions, [None] * count)


@given(st.integers(2, 400))
def test_a_derangement_is_one_cycle_through_all(count):
    partner = derangement(count)
    place, visited = 0, set()
    for _ in range(count):
        place = int(partner[place])
        visited.add(place)
    assert place == 0 and len(visited) == count


@pytest.mark.parametrize(
    "conditioning", ["word_attention", "caption_attention", "adaln", "feature", "sequence"]
)
def test_errors_are_the_models_own_loss_of_each_image(conditioning):
    model, test = tiny_model(conditioning), some_images()
    found = prediction_errors(model, TEXT, test, MASKS, CPU, batch=16)
    assert found.shape == (COUNT, 3)
    partner = derangement(COUNT)
    for number in (0, 1, 17, 63, 64, 69):
        drawn = sample_masks(MASKS, GRID, 64, seed=0, step=number // 64)
        place = slice(number % 64, number % 64 + 1)
        masks = Masks(drawn.context[place], drawn.targets[place])
        image = normalise(test.images[number : number + 1])
        shown = (test.texts([number]), test.texts([partner[number]]), [[]])
        for error, captions in zip(found[number], shown, strict=True):
            with torch.no_grad():
                own = model(image, masks, TEXT.encode(captions, CPU)).terms["predict"]
            assert error == pytest.approx(float(own), rel=1e-5)


def test_neither_the_batch_nor_the_mode_changes_a_result_or_is_changed():
    model, test = tiny_model().train(), some_images()
    errors = [prediction_errors(model, TEXT, test, MASKS, CPU, batch=b) for b in (7, 64, 100)]
    for other in errors[1:]:
        np.testing.assert_allclose(errors[0], other, rtol=1e-5)
    assert model.training and not model.target_encoder.training


def test_a_predictor_that_is_deaf_gains_nothing_and_one_that_hears_differs():
    model, test = tiny_model(), some_images()
    heard, _ = agree(model, TEXT, test, MASKS, CPU, batch=32)
    assert heard.right.value != heard.swapped.value != heard.none.value
    for conditioner in model.predictor.conditioners:
        torch.nn.init.zeros_(conditioner.value.weight)
    deaf, tallies = agree(model, TEXT, test, MASKS, CPU, batch=32)
    assert deaf.gain.value == pytest.approx(0, abs=1e-6)
    assert deaf.right.value == pytest.approx(deaf.none.value, abs=1e-6)
    assert list(tallies) == [RIGHT, SWAPPED, NONE, GAIN]


def test_tallies_hold_the_difference_of_each_captioned_image():
    test = images_of([["a star"], [], ["a ring"], ["a big red ring"]], [None] * 4)
    result, tallies = agree(tiny_model(), TEXT, test, MASKS, CPU, batch=2)
    assert result.images == 3
    assert tallies[GAIN].images == (test.uids[0], test.uids[2], test.uids[3])
    right, swapped = (tallies[name].sums[:, 0, 0] for name in (RIGHT, SWAPPED))
    np.testing.assert_allclose(tallies[GAIN].sums[:, 0, 0], swapped - right, atol=1e-6)
    assert (tallies[GAIN].sums[..., 1] == 1).all()
    assert result.gain.value == pytest.approx(float((swapped - right).mean()), abs=1e-6)
    deviation = float((swapped - right).std(ddof=1))
    assert result.gain.sampling_error == pytest.approx(deviation / 3**0.5, rel=1e-3)


def test_one_captioned_image_has_nobody_to_swap_with():
    with pytest.raises(NoAgreementError, match="1 test images have captions"):
        agree(tiny_model(), TEXT, images_of([["a star"], []], [None] * 2), MASKS, CPU, batch=2)


def test_a_model_that_diverged_is_said_to_have():
    model = tiny_model()
    torch.nn.init.constant_(model.predictor.project.weight, torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        agree(model, TEXT, some_images(4), MASKS, CPU, batch=2)
