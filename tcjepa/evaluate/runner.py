"""One evaluation, from images to numbers: extract once, then every task on the frozen features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcjepa.evaluate.annotations import (
    PLACED_BY,
    AnnotatedObject,
    AnnotationError,
    objects_of,
    size_of,
)
from tcjepa.evaluate.classification import FOLDER_LABEL, classify
from tcjepa.evaluate.config import EvaluateConfig
from tcjepa.evaluate.features import (
    Batches,
    Features,
    Prepare,
    extract,
)
from tcjepa.evaluate.rasterise import BACKGROUND, IGNORED, categories, rasterise
from tcjepa.evaluate.report import EvaluationResult, SpectrumResult
from tcjepa.evaluate.segmentation import NoSegmentationError, SegmentationResult, segment
from tcjepa.evaluate.spectrum import feature_std, lidar, rankme
from tcjepa.evaluate.tally import Tally, keys_of
from tcjepa.evaluate.views import FirstImages, view_features
from tcjepa.model.jepa import normalise


def evaluate(
    encoder: nn.Module,
    train_batches: Batches,
    test_batches: Batches,
    config: EvaluateConfig,
    device: torch.device,
    *,
    prepare: Prepare = normalise,
    train_total: int | None = None,
    test_total: int | None = None,
) -> tuple[EvaluationResult, dict[str, Tally]]:
    """Measure a frozen encoder on labelled images; return results, and tallies by measure's name.

    Batches are pairs of images (B, 3, H, H) uint8, already resized and centre-cropped to
    `config.image_size`, and B records. A record maps label names to text or integers (None or
    absent where unknown) and may have `annotations` (see `annotations.parse`), whose objects need
    the original `width` and `height` [pixels]; where they cannot serve, a note says why there is no
    segmentation. Pass images in random order where `max_train`, `max_test` or segmentation's limits
    cut the set short: the first images are taken. `prepare` must be what the encoder was trained
    with (see `extract`); the totals are for progress lines.

    Raises `ValueError` for empty sets, labels that no training record has and encoders that do not
    return finite (B, P, D) tokens.
    """
    dense, limits = "segmentation" in config.tasks, config.segmentation
    features = partial(
        extract,
        encoder,
        device=device,
        prepare=prepare,
        keep_patches=_annotated if dense else None,
    )
    train = features(
        train_batches,
        max_images=config.max_train,
        max_patches=limits.max_train,
        total=train_total,
        label="train features",
    )
    spread = config.lidar_images if "spectrum" in config.tasks else 0
    first = FirstImages(test_batches, min(spread, config.max_test or spread))
    test = features(
        first,
        max_images=config.max_test,
        max_patches=limits.max_test,
        total=test_total,
        label="test features",
    )
    notes: list[str] = []
    found = classify(train, test, config, device, notes)
    tallies = dict(found.tallies)
    spectrum = None
    if "spectrum" in config.tasks:
        views = partial(view_features, encoder, device=device, prepare=prepare, batch=config.batch)
        spectrum = _spectrum(test, first.kept, views)
    dense_found = _segment(train, test, config, device, notes) if dense else None
    segmentation = None
    if dense_found is not None:
        segmentation, tallies["mIoU"] = dense_found
    result = EvaluationResult(
        train_images=len(train),
        test_images=len(test),
        linear=found.linear,
        knn=found.knn,
        segmentation=segmentation,
        spectrum=spectrum,
        few_shot=found.few_shot,
        notes=tuple(notes),
    )
    return result, tallies


def _segment(
    train: Features, test: Features, config: EvaluateConfig, device: torch.device, notes: list[str]
) -> tuple[SegmentationResult, Tally] | None:
    if train.patches is None or test.patches is None or train.patch_rows is None:
        notes.append("segmentation: skipped, no image of the training or the test set is annotated")
        return None
    try:
        if "mask" in train.records[int(train.patch_rows[0])]:
            classes, train_masks, test_masks = _given_masks(train, test)
        else:
            classes, train_masks, test_masks = _drawn_masks(train, test, config.image_size, notes)
        if unseen := int((test_masks == IGNORED).any(dim=2).any(dim=1).sum()):
            notes.append(
                f"segmentation: {unseen} test images have pixels that are ignored: marked so, of a "
                "category not seen in training, or of an image none of whose objects has a place"
            )
        result, pixels = segment(
            train.patches.to(device),
            train_masks.to(device),
            test.patches.to(device),
            test_masks.to(device),
            classes=classes,
            config=config.segmentation.sweep,
            seeds=config.seeds,
        )
    except (AnnotationError, NoSegmentationError) as error:
        notes.append(f"segmentation: skipped, {error}")
        return None
    notes += [f"segmentation: the best setting has the sweep's {edge}" for edge in result.edges]
    keys = keys_of(test.records)
    images = [keys[row] for row in _rows(test)]
    return result, Tally.of_ratios(images, pixels[..., 0].numpy(), pixels[..., 1].numpy())


def _annotated(record: dict[str, Any]) -> bool:
    return record.get("annotations") is not None or record.get("mask") is not None


def _given_masks(train: Features, test: Features) -> tuple[list[str], Tensor, Tensor]:
    """Return class names and both sets' masks (n, H, H), of records that bring a mask along.

    Numbers that training lacks are ignored in the test set.
    """
    masks = [
        torch.from_numpy(np.stack([part.records[row]["mask"] for row in _rows(part)]))
        for part in (train, test)
    ]
    largest = int(masks[0].masked_fill(masks[0] == IGNORED, BACKGROUND).max())
    masks[1][~torch.isin(masks[1], torch.unique(masks[0]))] = IGNORED
    return ["background", *map(str, range(1, largest + 1))], masks[0], masks[1]


def _drawn_masks(
    train: Features, test: Features, size: int, notes: list[str]
) -> tuple[list[str], Tensor, Tensor]:
    """Return class names and both sets' masks (n, H, H), drawn from annotations."""
    truth = [_objects(train), _objects(test)]
    every = [one for part in truth for objects in part for one in objects]
    if lost := sum(one.outline is None for one in every):
        notes.append(
            f"segmentation: {lost} of {len(every)} annotated objects have neither box nor polygon "
            f"and are not drawn; {PLACED_BY}"
        )
    classes = categories(truth[0])
    train_masks, test_masks = (
        _masks(features, objects, classes, size)
        for features, objects in zip((train, test), truth, strict=True)
    )
    return ["background", *classes], train_masks, test_masks


def _rows(features: Features) -> list[int]:
    return [] if features.patch_rows is None else features.patch_rows.tolist()


def _objects(features: Features) -> list[list[AnnotatedObject]]:
    keys = keys_of(features.records)
    return [objects_of(features.records[row], keys[row]) or [] for row in _rows(features)]


def _masks(
    features: Features, truth: list[list[AnnotatedObject]], classes: list[str], size: int
) -> Tensor:
    rows, keys = _rows(features), keys_of(features.records)
    masks = np.full((len(rows), size, size), BACKGROUND, np.uint8)
    for mask, row, objects in zip(masks, rows, truth, strict=True):
        if any(one.outline is not None for one in objects):
            width, height = size_of(features.records[row], keys[row])
            mask[:] = rasterise(objects, size, classes, width=width, height=height)
        elif objects:
            mask[:] = IGNORED  # they may be anywhere, and so may be the background
    return torch.from_numpy(masks)


def _spectrum(
    test: Features, images: Sequence[Tensor], views: Callable[[Tensor], Tensor]
) -> SpectrumResult:
    """Measure the spread of features; LiDAR needs two of the `images` and the `views` of each."""
    pooled = test.pooled
    within = lidar(views(torch.cat(list(images)))) if sum(map(len, images)) > 1 else None
    return SpectrumResult(rankme(pooled), feature_std(pooled), pooled.shape[1], within)


__all__ = ["FOLDER_LABEL", "evaluate"]
