"""The batched trainer against torch's own optimizers."""

import pytest
import torch
from torch.nn import functional

from tcjepa.evaluate.sweep import Setting, Standardiser, grid, train


def correlated(count: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose variances span four decades, mixed, with noisy linear labels."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(count, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator)
    features = latent * torch.logspace(0, -4, width) @ mixing + 3
    scores = latent @ torch.randn(width, classes, generator=generator)
    noisy = scores + 2 * torch.randn(count, classes, generator=generator)
    return features, noisy.argmax(dim=1)


@pytest.mark.parametrize("whole", [True, False])
def test_one_setting_of_many_is_torch_adamw(whole: bool):
    """Also where targets sum to less than 1, or to nothing, as for patches of ignored pixels."""
    features, labels = correlated(96, 8, 3)
    targets = functional.one_hot(labels, 3).float()
    if not whole:
        targets *= torch.tensor([0.0, 0.3, 1.0]).repeat(32)[:, None]
    settings = grid([1e-3, 1e-1], [0.0, 0.5])
    batches: list[torch.Tensor] = []

    def minibatch(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(rows)
        return features[rows], targets[rows]

    ours = train(minibatch, torch.arange(96), (8, 3), settings, epochs=2, batch=40, seed=1)
    start = train(
        minibatch, torch.arange(96), (8, 3), [Setting(1e-12, 0)], epochs=1, batch=96, seed=1
    )
    for number, setting in enumerate(settings):
        weight = start.weight[:, 0].clone().requires_grad_()
        bias = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.AdamW(
            [
                {"params": [weight], "weight_decay": setting.weight_decay},
                {"params": [bias], "weight_decay": 0.0},
            ],
            lr=setting.learning_rate,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
        for rows in batches[:6]:
            optimizer.zero_grad()
            functional.cross_entropy(features[rows] @ weight + bias, targets[rows]).backward()
            optimizer.step()
            schedule.step()
        assert torch.allclose(ours.weight[:, number], weight, atol=2e-5)
        assert torch.allclose(ours.bias[number], bias, atol=2e-5)


def test_one_class_has_a_weight_of_its_own_per_setting():
    features, _ = correlated(20, 4, 2)
    settings = [Setting(1e-2, 0.0), Setting(1e-2, 0.5)]
    ours = train(
        lambda rows: (features[rows], torch.ones(len(rows), 1)),
        torch.arange(20), (4, 1), settings, epochs=1, batch=20, seed=1,
    )  # fmt: skip
    # Its probability is 1 whatever the weights, so there is nothing to learn but the decay.
    assert torch.allclose(ours.weight[:, 1], ours.weight[:, 0] * (1 - 1e-2 * 0.5))
    assert ours.weight.abs().min() > 0


def test_reaches_the_optimum_that_lbfgs_finds_on_ill_conditioned_features():
    features, labels = correlated(1000, 24, 5)
    rows = Standardiser.fit(features)(features)
    targets = functional.one_hot(labels, 5).float()
    weight = torch.zeros(24, 5, requires_grad=True)
    bias = torch.zeros(5, requires_grad=True)
    exact = torch.optim.LBFGS(
        [weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        exact.zero_grad()
        loss = functional.cross_entropy(rows @ weight + bias, labels)
        loss.backward()
        return loss

    exact.step(closure)
    best = float(closure().detach())
    ours = train(
        lambda r: (rows[r], targets[r]),
        torch.arange(1000),
        (24, 5),
        [Setting(0.1, 0.0), Setting(0.3, 0.0)],
        epochs=50,
        batch=128,
        seed=0,
    )
    losses = functional.cross_entropy(
        ours.logits(rows).permute(0, 2, 1), labels[:, None].expand(-1, 2), reduction="none"
    ).mean(dim=0)
    assert float(losses.min()) < best + 0.01


def test_standardiser_whitens_lengths_not_only_axes():
    features, _ = correlated(500, 8, 2)
    features[:, 3] = 7.0
    out = Standardiser.fit(features)(features)
    plain = (features - features.mean(dim=0)) / features.std(dim=0, correction=0).clamp(min=1e-9)
    plain[:, 3] = 0.0
    # A rotation keeps every distance, so the family of classifiers and their norms are the same.
    assert torch.allclose(torch.cdist(out, out), torch.cdist(plain, plain), atol=2e-2)
    assert torch.allclose(out.mean(dim=0), torch.zeros(8), atol=1e-4)
    covariance = out.T @ out / len(out)
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-3)


def test_standardiser_keeps_digits_under_a_large_offset():
    features, _ = correlated(300, 4, 2)
    shifted = Standardiser.fit(features.double() + 1e3)
    assert torch.allclose(
        shifted.matrix.abs(), Standardiser.fit(features).matrix.abs(), rtol=1e-2, atol=1e-3
    )


def test_standardiser_refuses_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        Standardiser.fit(torch.zeros(0, 4))
