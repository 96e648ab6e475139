"""kNN against a plain loop, and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.evaluate import knn


def plain(train, labels, test, classes, *, k, temperature) -> list[int]:
    answers = []
    for row in test.tolist():
        scored = []
        for other, label in zip(train.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(row, other, strict=True))
            scored.append((dot / (math.hypot(*row) * math.hypot(*other)), label))
        votes = [0.0] * classes
        for cosine, label in sorted(scored, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        answers.append(votes.index(max(votes)))
    return answers


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.sampled_from([0.07, 1.0]))
def test_agrees_with_a_plain_loop(seed, k, temperature):
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(12, 5, generator=generator)
    labels = torch.randint(3, (12,), generator=generator)
    test = torch.randn(7, 5, generator=generator)
    found = knn.predict(train, labels, test, 3, k=k, temperature=temperature)
    assert found.tolist() == plain(train, labels, test, 3, k=k, temperature=temperature)


def test_far_neighbours_vote_at_low_temperatures_too():
    """Votes relative to a cosine of 1 would all be 0 in 32 bits, and class 0 would win."""
    angles = torch.tensor([1.2, 1.5, 1.6])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = knn.predict(
        train, torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]]), 2, k=3, temperature=0.005
    )
    assert found.tolist() == [1]


def test_one_neighbour_of_itself_is_itself_whatever_the_scale_and_chunk(monkeypatch):
    monkeypatch.setattr(knn, "_CHUNK", 4)
    train = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10)
    found = knn.predict(train, labels, 100 * train, 10, k=1, temperature=0.001)
    assert found.tolist() == labels.tolist()


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.07), (5, 0.07), (1, 0.0)])
def test_refusals(k, temperature):
    train = torch.randn(4, 3)
    with pytest.raises(ValueError, match="must"):
        knn.predict(train, torch.zeros(4).long(), train, 1, k=k, temperature=temperature)
