"""Softmax classifiers for a whole grid of settings, trained side by side.

Every setting sees the same minibatches, so that all of them share one matrix product per step:
(b, D) @ (D, G·K), where G settings of K classes lie next to each other. A sweep then costs little
more than its widest product, on a CPU too.

An under-trained probe ranks encoders wrongly: features of an untrained ViT are so correlated that
AdamW on them, feature by feature, stops far from the optimum that L-BFGS finds, and a baseline of
random weights then looks worse than it is. So features are standardised, then rotated to their
principal axes. A rotation changes neither the family of linear classifiers nor the length of their
weights (what weight decay shrinks); it only lines AdamW's steps up with the curvature.

Shapes: b rows of a minibatch, D features, G settings, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Adam's moments and epsilon as torch.optim.AdamW has them.
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_INITIAL_STD = 0.01
_CHUNK = 16384

Minibatch = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows (b,) int64 -> features (b', D) float32 and class distributions (b', K) float32."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid: AdamW's peak learning rate and decoupled weight decay."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Standardiser:
    """Zero mean and unit variance per feature, then a rotation: `mean` (D,), `matrix` (D, D)."""

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, rows: Tensor) -> Standardiser:
        """Return the transform whose statistics are those of (n, D) rows, on their device.

        A constant feature becomes 0 instead of amplified rounding noise. Raises `ValueError` where
        there is no row.
        """
        if not len(rows):
            raise ValueError("no rows to take statistics from")
        mean, covariance = _moments(rows)
        std = covariance.diagonal().clamp(min=0).sqrt()
        scale = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1 / std, 0.0)
        axes = torch.linalg.eigh(covariance * scale.outer(scale)).eigenvectors
        return cls(mean.float(), (scale[:, None] * axes).float())

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (n, D) rows standardised and rotated, float32."""
        return (rows.float() - self.mean) @ self.matrix


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and covariance (D, D) in float64, a chunk of rows at a time.

    Summed about the first row, so that a large common offset does not cancel digits.
    """
    width, origin = rows.shape[1], rows[0].double()
    first = torch.zeros(width, dtype=torch.float64, device=rows.device)
    second = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for chunk in torch.split(rows, _CHUNK):
        centred = chunk.double() - origin
        first += centred.sum(dim=0)
        second += centred.T @ centred
    offset = first / len(rows)
    return origin + offset, second / len(rows) - offset.outer(offset)


@dataclass(frozen=True)
class Classifiers:
    """G linear classifiers: `weight` (D, G, K) and `bias` (G, K), float32."""

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """Return (b, G, K) logits of (b, D) rows."""
        width, settings, classes = self.weight.shape
        product = rows @ self.weight.reshape(width, settings * classes)
        return product.view(len(rows), settings, classes) + self.bias


def grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[Setting]:
    """Return every combination, learning rate slowest."""
    return [Setting(rate, decay) for rate in learning_rates for decay in weight_decays]


def train(
    minibatch: Minibatch,
    rows: Tensor,
    shape: tuple[int, int],
    settings: Sequence[Setting],
    *,
    epochs: int,
    batch: int,
    seed: int,
) -> Classifiers:
    """Minimise cross-entropy by AdamW with a cosine schedule to zero, all settings at once.

    Targets may sum to less than 1, which is then the weight of the row.
    `rows` (n,) int64 are the row numbers that `minibatch` understands; each epoch visits them once
    in a fresh order. `shape` is (D, K). `seed` fixes the initial weights and the order. The update
    is torch.optim.AdamW's, written out because each column of the weights has its own rate.
    """
    width, classes = shape
    generator = torch.Generator().manual_seed(seed)
    device = rows.device
    initial = torch.randn(width, 1, classes, generator=generator) * _INITIAL_STD
    # One initial point for all settings: they differ by what the sweep varies and nothing else.
    # Copied, since steps are in place: of one class a reshaped view would stay a view.
    weight = initial.repeat(1, len(settings), 1).view(width, -1).to(device)
    bias = torch.zeros(len(settings) * classes, device=device)
    rate = _columns([s.learning_rate for s in settings], classes, device)
    decay = _columns([s.weight_decay for s in settings], classes, device)
    weight_moments = torch.zeros_like(weight), torch.zeros_like(weight)
    bias_moments = torch.zeros_like(bias), torch.zeros_like(bias)
    steps = epochs * math.ceil(len(rows) / batch)
    for step, chosen in enumerate(_orders(rows, epochs, batch, generator)):
        inputs, targets = minibatch(chosen)
        logits = torch.addmm(bias, inputs, weight).view(len(inputs), len(settings), classes)
        # Of targets that sum to less than 1 the rest is nobody's, and teaches nothing.
        weights = targets.sum(dim=1)[:, None, None]
        error = weights * logits.softmax(dim=2) - targets[:, None]
        error = error.view(len(inputs), -1) / len(inputs)
        now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)))
        weight.mul_(1 - now * decay)  # the bias is not decayed
        _adam(weight, inputs.T @ error, weight_moments, now, step + 1)
        _adam(bias, error.sum(dim=0), bias_moments, now, step + 1)
    return Classifiers(
        weight.view(width, len(settings), classes), bias.view(len(settings), classes)
    )


def _columns(values: list[float], classes: int, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).repeat_interleave(classes)


def _orders(rows: Tensor, epochs: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).to(rows.device)
        yield from torch.split(rows[order], batch)


def _adam(
    values: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: Tensor, step: int
) -> None:
    first, second = moments
    first.lerp_(gradient, 1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    scale = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
    values.sub_(rate * (first / (1 - _BETAS[0] ** step)) / scale)
