"""Intersection over union from confusion matrices, and what another test set would change.

Shapes: m images, H×W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tcjepa.evaluate.rasterise import IGNORED

_RESAMPLES = 200


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return counts (m, K, K) int64 of pixels by (true, predicted) class, one matrix per image.

    `truth` and `predicted` are (m, H, W) of any integer type with values below K; pixels whose
    truth is 255 are left out.
    """
    image = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cells = (image * classes + truth.long()) * classes + predicted.long()
    counted = cells[truth != IGNORED]
    length = len(truth) * classes * classes
    return torch.bincount(counted, minlength=length).view(len(truth), classes, classes)


def iou(matrices: Tensor) -> Tensor:
    """Return the IoU (…, K) float64 of each class of confusion matrices (…, K, K).

    A class in neither truth nor prediction is nan, which leaves it out of the mean (as mmseg,
    whose figures DINOv2 reports, does); one that is only predicted, or only missed, is 0.
    """
    return overlaps(_counts(matrices))


def overlaps(counts: Tensor) -> Tensor:
    """Return the IoU (…, K) of (…, 3, K) pixel counts: both, predicted, true; nan for 0 / 0."""
    both, predicted, true = counts.double().unbind(dim=-2)
    return both / (predicted + true - both)


def intersections_and_unions(matrices: Tensor) -> Tensor:
    """Return pixels (…, K, 2) of intersection and union by class, of confusions (…, K, K)."""
    both, predicted, true = _counts(matrices).unbind(dim=-2)
    return torch.stack([both, predicted + true - both], dim=-1)


def bootstrap_error(matrices: Tensor, seed: int = 0) -> float:
    """Return the standard error of mIoU over test images, from confusions (m, K, K).

    Images, not pixels, are drawn again with replacement, 200 times: pixels of an image are far from
    independent. Draws of images that are ignored altogether have no mIoU and are left out.
    """
    counts = _counts(matrices).double().flatten(1).cpu()  # (m, 3·K)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (_RESAMPLES, len(counts)), generator=generator)
    times = torch.zeros(_RESAMPLES, len(counts), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    totals = (times @ counts).view(_RESAMPLES, 3, -1)
    values = overlaps(totals).nanmean(dim=1)
    return float(values[~values.isnan()].std())


def _counts(matrices: Tensor) -> Tensor:
    both = matrices.diagonal(dim1=-2, dim2=-1)
    return torch.stack([both, matrices.sum(dim=-2), matrices.sum(dim=-1)], dim=-2)


__all__ = ["bootstrap_error", "confusion", "intersections_and_unions", "iou", "overlaps"]
