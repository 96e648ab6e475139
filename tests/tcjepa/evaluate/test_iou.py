"""mIoU against a slow count, and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.evaluate.iou import bootstrap_error, confusion, iou

K = 4


def masks(seed: int, images: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(K, (images, 5, 5), generator=generator)


def slow_miou(truth: torch.Tensor, predicted: torch.Tensor) -> float:
    pairs = [
        (t, p)
        for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True)
        if t != 255
    ]
    values = []
    for c in range(K):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(c in pair for pair in pairs)
        if either:
            values.append(both / either)
    return sum(values) / len(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_agrees_with_a_slow_count_and_lies_in_bounds(seed, ignore, absent):
    truth, predicted = masks(seed), masks(seed + 1)
    if absent:
        truth[truth == 2] = predicted[predicted == 2] = 1
    if ignore:
        truth[:, 0] = 255
    value = float(iou(confusion(truth.to(torch.uint8), predicted, K).sum(dim=0)).nanmean())
    assert value == pytest.approx(slow_miou(truth, predicted))
    assert 0 <= value <= 1


@given(st.integers(0, 100))
def test_renaming_classes_does_not_matter(seed):
    truth, predicted = masks(seed), masks(seed + 1)
    names = torch.tensor([2, 0, 3, 1])
    value = iou(confusion(truth, predicted, K).sum(dim=0))
    renamed = iou(confusion(names[truth], names[predicted], K).sum(dim=0))
    assert torch.allclose(renamed[names], value, equal_nan=True)


def test_perfect_is_one_with_no_error_and_absent_classes_do_not_count():
    truth = masks(0).clamp(max=1)
    table = confusion(truth, truth, K)
    values = iou(table.sum(dim=0))
    assert values[:2].tolist() == [1, 1]
    assert all(math.isnan(v) for v in values[2:].tolist())
    assert bootstrap_error(table) == 0


def test_a_class_only_predicted_is_zero():
    truth, predicted = torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long()
    predicted[0, 0, 0] = 3
    values = iou(confusion(truth, predicted, K).sum(dim=0))
    assert values[0] == pytest.approx(0.75)
    assert values[3] == 0


def test_bootstrap_error_shrinks_with_the_root_of_the_test_set():
    small = bootstrap_error(confusion(masks(0, 100), masks(1, 100), K))
    large = bootstrap_error(confusion(masks(0, 1600), masks(1, 1600), K))
    assert small / large == pytest.approx(4, rel=0.3)


def test_draws_of_ignored_images_alone_are_left_out_of_the_error():
    """Of two images that count among eight, one draw in ten has neither."""
    truth, predicted = masks(0, 8), masks(0, 8)
    predicted[1] = 0
    truth[2:] = 255
    error = bootstrap_error(confusion(truth, predicted, K))
    assert 0 < error < 1
