"""Weighted k-nearest-neighbour classification, as DINO evaluates frozen features.

Shapes: n training and m test images, D features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1024


def predict(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, *, k: int, temperature: float
) -> Tensor:
    """Return the predicted class (m,) int64 of each row of `test` (m, D).

    The k training rows (of `train` (n, D), `labels` (n,) int64 in [0, K)) with the highest cosine
    similarity vote with weight exp(cosine / temperature); DINO (Caron et al. 2021, eval_knn.py)
    has k = 20, temperature = 0.07. Rows are compared as they come from the encoder, not
    standardised. Raises `ValueError` unless 1 <= k <= n and the temperature is positive.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}; it must lie between 1 and the {len(train)} training images")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    bank = torch.nn.functional.normalize(train.float(), dim=1).T.contiguous()
    predicted = [labels.new_empty(0)]
    for chunk in torch.split(test, _CHUNK):
        cosine = torch.nn.functional.normalize(chunk.float(), dim=1) @ bank
        predicted.append(_vote(cosine, labels, classes, k, temperature))
    return torch.cat(predicted)


def _vote(cosine: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    nearest = cosine.topk(k, dim=1)
    # A factor on all votes of an image changes no winner; with this one the largest is 1.
    weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(cosine), classes)
    return votes.scatter_add_(1, labels[nearest.indices], weights).argmax(dim=1)


__all__ = ["predict"]
