"""Linear segmentation: one linear classifier on every patch feature, scored in pixels.

Training minimises cross-entropy between a patch's prediction and the share of its pixels that each
class covers. That is the pixel cross-entropy of a prediction that is constant inside a patch, at a
cost that does not grow with the image: DINOv2 (Oquab et al. 2023, section 7.4) trains on upsampled
logits instead, which on a CPU is hundreds of times dearer for a loss that differs at patch borders
only. Evaluation is DINOv2's: logits are upsampled bilinearly to the mask's size, then the largest
wins, and IoU is counted in pixels over the whole test set. Features are standardised over all
training patches, where DINOv2's head has a batch norm.

Shapes: n training and m test images, P = g·g patches, D features, H pixels (square masks), K
classes (background is class 0), G settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.iou import (
    bootstrap_error,
    confusion,
    intersections_and_unions,
    iou,
    overlaps,
)
from tcjepa.evaluate.linear import edges, split
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.rasterise import BACKGROUND, IGNORED
from tcjepa.evaluate.sweep import Classifiers, Setting, Standardiser, grid, train

_CHUNK = 32

_Data = tuple[Tensor, Tensor]
"""Standardised features (n, P, D) and class shares (n, P, K), float16."""


class NoSegmentationError(ValueError):
    """Segmentation cannot be measured here; the message says why, for a note."""


@dataclass(frozen=True)
class SegmentationResult:
    """Test scores of a linear segmentation head; shares in [0, 1].

    `per_class` and `pixel_accuracy` are means over seeds; a class that occurs neither in the test
    masks nor in the predictions has None. `miou` is the mean over all seeds' classes that occur and
    carries a bootstrap error over test images.
    """

    miou: Measure
    pixel_accuracy: float
    per_class: dict[str, float | None]
    chosen: tuple[Setting, ...]
    edges: tuple[str, ...]
    train_images: int
    test_images: int


def segment(
    train_patches: Tensor,
    train_masks: Tensor,
    test_patches: Tensor,
    test_masks: Tensor,
    *,
    classes: Sequence[str],
    config: SweepConfig,
    seeds: int,
) -> tuple[SegmentationResult, Tensor]:
    """Segment patch features (n, P, D) and (m, P, D) with masks (n, H, H) and (m, H, H) uint8.

    `classes` names mask values 0 to K - 1; 255 is ignored. Per seed, the setting is
    chosen by mIoU on held-out training images and trained again on all of them. The second result
    (m, seeds·K, 2) int64, on the CPU, holds intersection and union [pixels] of each test image,
    each seed's classes in turn: mIoU is the mean over all of them. Raises
    `NoSegmentationError` for fewer than two training or test images, or where those of either show
    background only, `ValueError` for masks that the patch grid does not divide.
    """
    _check(train_masks, test_masks)
    side, names = _grid_side(train_patches, train_masks), list(classes)
    standardise = Standardiser.fit(train_patches.flatten(0, 1))
    features = _transform(standardise, train_patches)
    data = (features, _shares(train_masks, side, len(names)))
    tested = _transform(standardise, test_patches)
    settings = grid(config.learning_rates, config.weight_decays)
    chosen, tables = [], []
    for seed in range(seeds):
        best = settings[0]
        if len(settings) > 1:
            best = settings[_choose(data, settings, config, seed)]
        everything = torch.arange(len(features), device=features.device)
        final = _fit(data, everything, [best], config, seed)
        tables.append(_test(final, tested, test_masks, side, len(names)))
        chosen.append(best)
    whole = torch.stack([table.sum(dim=0) for table in tables]).double()  # (seeds, K, K)
    per_class = iou(whole)
    sampling = [bootstrap_error(table) for table in tables]
    miou = Measure.over_seeds(per_class.nanmean(dim=1).tolist(), sum(sampling) / seeds)
    result = SegmentationResult(
        # Seeds may differ in which classes occur; what tallies draw again is the mean over all.
        miou=replace(miou, value=float(per_class.nanmean())),
        pixel_accuracy=float(whole.diagonal(dim1=1, dim2=2).sum() / whole.sum()),
        per_class={
            name: None if math.isnan(value) else value
            for name, value in zip(names, per_class.nanmean(dim=0).tolist(), strict=True)
        },
        chosen=tuple(chosen),
        edges=edges(chosen, config),
        train_images=len(train_patches),
        test_images=len(test_patches),
    )
    return result, torch.cat([intersections_and_unions(table) for table in tables], dim=1).cpu()


def _check(train_masks: Tensor, test_masks: Tensor) -> None:
    if len(train_masks) < 2 or len(test_masks) < 2:  # one test image has no standard error
        raise NoSegmentationError(
            "it needs two training images and two test images with a mask or annotations, "
            f"got {len(train_masks)} and {len(test_masks)}"
        )
    parts = {"training images show no object": train_masks}
    parts["test images show no object of a class seen in training"] = test_masks
    for problem, masks in parts.items():
        if not bool(((masks != BACKGROUND) & (masks != IGNORED)).any()):
            raise NoSegmentationError(
                f"the {len(masks)} {problem}; annotate some, or leave segmentation out of "
                "evaluate.tasks"
            )


def _grid_side(patches: Tensor, masks: Tensor) -> int:
    side = math.isqrt(patches.shape[1])
    size = masks.shape[1]
    if side * side != patches.shape[1] or masks.shape[1] != masks.shape[2] or size % side:
        raise ValueError(
            f"{patches.shape[1]} patches do not divide masks of {tuple(masks.shape[1:])} pixels "
            "into a square grid"
        )
    return side


def _transform(standardise: Standardiser, patches: Tensor) -> Tensor:
    """Return standardised patches (n, P, D), kept in float16 as they came."""
    count, grid_size, width = patches.shape
    out = torch.empty_like(patches, dtype=torch.float16)
    for start in range(0, count, _CHUNK):
        rows = patches[start : start + _CHUNK].reshape(-1, width)
        out[start : start + _CHUNK] = standardise(rows).view(-1, grid_size, width)
    return out


def _shares(masks: Tensor, side: int, classes: int) -> Tensor:
    """Return the share of each patch that each class covers, (n, P, K) float16.

    Ignored pixels are nobody's: they leave a patch less than 1 in all, and so less weight.
    """
    cell = masks.shape[1] // side
    shares = masks.new_empty(len(masks), side * side, classes, dtype=torch.float16)
    for start in range(0, len(masks), _CHUNK):
        chunk = masks[start : start + _CHUNK].long().view(-1, side, cell, side, cell)
        pixels = chunk.transpose(2, 3).reshape(-1, side * side, cell * cell)
        pixels = pixels.masked_fill(pixels == IGNORED, classes)
        counts = shares.new_zeros(*pixels.shape[:2], classes + 1, dtype=torch.float32)
        counts.scatter_add_(2, pixels, torch.ones_like(pixels, dtype=torch.float32))
        shares[start : start + _CHUNK] = counts[..., :classes] / (cell * cell)
    return shares


def _fit(
    data: _Data, images: Tensor, settings: list[Setting], config: SweepConfig, seed: int
) -> Classifiers:
    features, shares = data

    def minibatch(numbers: Tensor) -> tuple[Tensor, Tensor]:
        return features[numbers].flatten(0, 1).float(), shares[numbers].flatten(0, 1).float()

    return train(
        minibatch,
        images,
        (features.shape[2], shares.shape[2]),
        settings,
        epochs=config.epochs,
        batch=config.batch,
        seed=seed,
    )


def _choose(data: _Data, settings: list[Setting], config: SweepConfig, seed: int) -> int:
    features, shares = data
    fit, held = split(len(features), config.validation_share, seed, features.device)
    swept = _fit(data, fit, settings, config, seed)
    classes = shares.shape[2]
    total = torch.zeros(len(settings), 3, classes, dtype=torch.float64, device=shares.device)
    for numbers in torch.split(held, _CHUNK):
        truth = shares[numbers].flatten(0, 1).float()
        answers = swept.logits(features[numbers].flatten(0, 1).float()).argmax(dim=2)
        predicted = functional.one_hot(answers, classes).float()  # (b·P, G, K)
        total[:, 0] += torch.einsum("bk,bgk->gk", truth, predicted)
        total[:, 1] += torch.einsum("b,bgk->gk", truth.sum(dim=1), predicted)
        total[:, 2] += truth.sum(dim=0)
    return int(overlaps(total).nanmean(dim=1).argmax())


def _test(head: Classifiers, tested: Tensor, masks: Tensor, side: int, classes: int) -> Tensor:
    """Return one confusion matrix per test image, (m, K, K)."""
    tables = []
    for features, truth in zip(
        torch.split(tested, _CHUNK), torch.split(masks, _CHUNK), strict=True
    ):
        logits = head.logits(features.flatten(0, 1).float())[:, 0]
        planes = logits.view(len(features), side, side, classes).permute(0, 3, 1, 2)
        upsampled = functional.interpolate(
            planes, size=truth.shape[1:], mode="bilinear", align_corners=False
        )
        tables.append(confusion(truth, upsampled.argmax(dim=1), classes))
    return torch.cat(tables)


__all__ = ["NoSegmentationError", "SegmentationResult", "segment"]
