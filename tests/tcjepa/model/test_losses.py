import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tcjepa.model import losses

B, N, S, Q, LAYERS = 3, 2, 4, 5, 3


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    cosines = [torch.rand(B, N, S, Q, generator=generator) * 2 - 1 for _ in range(LAYERS)]
    real = torch.tensor([[True, True], [True, False], [False, False]])
    lengths = torch.tensor([[4, 2], [1, 3], [1, 1]])
    valid = torch.arange(S) < lengths.unsqueeze(-1)
    return [c.requires_grad_() for c in cosines], real, valid


def _loops(case, per_patch):
    """Eq. 4: average over layers, patches, the image's captions, captioned images."""
    cosines, real, valid = case
    images = []
    for b in range(B):
        captions = []
        for n in range(N):
            if real[b, n]:
                words = [s for s in range(S) if valid[b, n, s]]
                values = [
                    per_patch(cosines, words, (b, n, i, k)) for k in range(LAYERS) for i in range(Q)
                ]
                captions.append(sum(values) / len(values))
        if captions:
            images.append(sum(captions) / len(captions))
    return sum(images) / len(images)


def _sparse(cosines, words, place):
    b, n, i, k = place
    return sum(max(cosines[k][b, n, s, i], torch.zeros(())) for s in words)


def _consistent(cosines, words, place):
    b, n, i, k = place
    total = torch.zeros(())
    for s in words:
        own = [max(cosines[j][b, n, s, i], torch.zeros(())) for j in range(LAYERS)]
        total = total + abs(own[k] - sum(own) / LAYERS)
    return total


def _entropy(cosines, words, place):
    b, n, i, k = place
    if len(words) == 1:
        return torch.zeros(())
    p = torch.stack([cosines[k][b, n, s, i] / 0.1 for s in words]).softmax(0)
    return -sum(x * x.log() for x in p) / math.log(len(words))


def _fast(name, case):
    cosines, real, valid = case
    weights = losses.caption_weights(real)
    if name == "entropy":
        return losses.entropy_sparsity(cosines, valid, weights, 0.1)
    similarities = [losses.rectify(c * valid.unsqueeze(-1)) for c in cosines]
    return getattr(losses, name)(similarities, weights)


@pytest.mark.parametrize(
    ("name", "per_patch"),
    [("sparsity", _sparse), ("consistency", _consistent), ("entropy", _entropy)],
)
def test_regularizers_equal_loops_in_value_and_gradient(case, name, per_patch):
    fast, slow = _fast(name, case), _loops(case, per_patch)
    torch.testing.assert_close(fast, slow)
    own, expected = torch.autograd.grad(fast, case[0]), torch.autograd.grad(slow, case[0])
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_only_the_entropy_form_survives_negative_cosines(case):
    cosines, real, valid = case
    dead = ([(-c.detach().abs() - 0.01).requires_grad_() for c in cosines], real, valid)
    sparse = _fast("sparsity", dead)
    assert sparse == 0 and not any(g.any() for g in torch.autograd.grad(sparse, dead[0]))
    entropy = _fast("entropy", dead)
    assert entropy > 0 and all(g.any() for g in torch.autograd.grad(entropy, dead[0]))


def test_prediction_loss_is_the_mean_norm_over_patches():
    predicted, target = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5)
    slow = [
        math.sqrt(sum((predicted[b, m, t, d].item() - target[b, m, t, d].item()) ** 2
                      for d in range(5)))
        for b in range(2) for m in range(3) for t in range(4)
    ]  # fmt: skip
    assert losses.prediction_loss(predicted, target, "l2").item() == pytest.approx(sum(slow) / 24)
    smooth = losses.prediction_loss(predicted, target, "smooth_l1")
    assert smooth.item() == pytest.approx(functional.smooth_l1_loss(predicted, target).item())
    doubles = predicted.detach().double().requires_grad_()
    # Inside the loss arithmetic is float32, hence the wide steps and tolerance.
    assert torch.autograd.gradcheck(
        lambda x: losses.prediction_loss(x, target, "l2").double(), doubles, eps=1e-2, atol=1e-3
    )


def test_prediction_loss_has_a_finite_gradient_at_a_perfect_prediction():
    target = torch.randn(1, 1, 2, 4)
    predicted = target.clone().requires_grad_()
    losses.prediction_loss(predicted, target, "l2").backward()
    assert torch.isfinite(predicted.grad).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_caption_weights_sum_to_one_or_nothing(real):
    weights = losses.caption_weights(torch.tensor(real))
    assert weights.sum().item() == pytest.approx(float(any(map(any, real))))
    assert not weights[~torch.tensor(real)].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_entropies_are_shares_of_log_s(length, seed):
    generator = torch.Generator().manual_seed(seed)
    valid = (torch.arange(6) < length).view(1, 1, 6)
    logits = torch.randn(1, 1, 6, 3, generator=generator).masked_fill(~valid[..., None], -torch.inf)
    entropy = losses.attention_entropy(logits.softmax(2), valid, torch.ones(1, 1))
    assert -1e-6 <= entropy <= 1 + 1e-6
    even = (valid / length).unsqueeze(-1).expand(-1, -1, -1, 3)
    expected = 1.0 if length > 1 else 0.0
    assert losses.attention_entropy(even, valid, torch.ones(1, 1)).item() == pytest.approx(expected)
