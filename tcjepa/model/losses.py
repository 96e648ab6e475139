"""What is minimised: prediction (Eq. 1) and the two text regularizers (Eqs. 3 and 4).

Each regularizer reads one rectified similarity per layer, O (B, N, S, Q), in float32 or wider: S
words of N captions against Q predictor tokens of B images, 0 at padding. Captions count equally
inside an image and captioned images equally in the batch, by weights (B, N) that sum to 1 (Eq. 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.model.precision import wide


def prediction_loss(
    predicted_BMTD: Tensor, target_BMTD: Tensor, kind: Literal["l2", "smooth_l1"]
) -> Tensor:
    """Return Eq. 1: mean over target patches of the unsquared L2 norm of the error; a scalar.

    For features of unit variance it is of order sqrt(D). `smooth_l1` is I-JEPA's public code
    instead: a mean over elements, thousands of times smaller.
    """
    predicted, target = wide(predicted_BMTD), wide(target_BMTD)
    if kind == "smooth_l1":
        return functional.smooth_l1_loss(predicted, target)
    error: Tensor = torch.linalg.vector_norm(predicted - target, dim=-1)
    return error.mean()


def caption_weights(real_BN: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return weights (B, N) of Eq. 4's averages: equal per caption inside equal images; sum 1 or 0.

    `real_BN` is True at captions that exist; images without any have no weight.
    """
    per_image = real_BN.to(dtype) / real_BN.sum(1, keepdim=True).clamp_min(1)
    return per_image / real_BN.any(1).sum().clamp_min(1)


def rectify(cosine_BNSQ: Tensor) -> Tensor:
    """Return O = max(cos, 0) (above Eq. 3); at padding the cosine, and so O, is 0."""
    return cosine_BNSQ.relu()


def sparsity(similarities: Sequence[Tensor], weights_BN: Tensor) -> Tensor:
    """Return L_sparse of Eqs. 3 and 4: mean over patches, layers, captions of sum_s O_s; a scalar.

    Vacuous once every cosine is negative: then value and gradient are 0.
    """
    layers = [_weighted(rectified.sum(2), weights_BN) for rectified in similarities]
    return torch.stack(layers).mean()


def consistency(similarities: Sequence[Tensor], weights_BN: Tensor) -> Tensor:
    """Return L_consistency of Eqs. 3 and 4: as `sparsity`, of ||O_l - mean over layers of O||_1."""
    mean = sum(similarities[1:], similarities[0]) / len(similarities)
    layers = [_weighted((own - mean).abs().sum(2), weights_BN) for own in similarities]
    return torch.stack(layers).mean()


def entropy_sparsity(
    cosines: Sequence[Tensor], valid_BNS: Tensor, weights_BN: Tensor, temperature: float
) -> Tensor:
    """Return the mean entropy of softmax(cos / temperature) over words, divided by log(S); ours.

    In [0, 1] and without a dead zone: it also has a gradient where all cosines are negative. S is
    the caption's own number of words; a caption of one word gives 0.
    """
    layers = []
    for cosine in cosines:
        logits = (cosine / temperature).masked_fill(~valid_BNS.unsqueeze(-1), -1e30)
        layers.append(_weighted(_entropy(logits.log_softmax(2), valid_BNS), weights_BN))
    return torch.stack(layers).mean()


def attention_entropy(weights_BNSQ: Tensor, valid_BNS: Tensor, weights_BN: Tensor) -> Tensor:
    """Return the mean entropy of attention weights over words, divided by log(S); in [0, 1]."""
    return _weighted(_entropy(weights_BNSQ.clamp_min(1e-12).log(), valid_BNS), weights_BN)


def _entropy(log_p_BNSQ: Tensor, valid_BNS: Tensor) -> Tensor:
    """Return entropies (B, N, Q) over words, normalised to [0, 1]."""
    entropy = -(log_p_BNSQ.exp() * log_p_BNSQ * valid_BNS.unsqueeze(-1)).sum(2)
    return entropy / valid_BNS.sum(2).to(entropy.dtype).clamp_min(2).log().unsqueeze(-1)


def _weighted(value_BNQ: Tensor, weights_BN: Tensor) -> Tensor:
    return (value_BNQ.mean(2) * weights_BN).sum()


__all__ = [
    "attention_entropy",
    "caption_weights",
    "consistency",
    "entropy_sparsity",
    "prediction_loss",
    "rectify",
    "sparsity",
]
