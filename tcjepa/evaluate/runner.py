"""One evaluation, from images to numbers: extract once, then every task on the frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcjepa.evaluate import knn
from tcjepa.evaluate.config import EvaluateConfig
from tcjepa.evaluate.features import (
    Batches,
    Features,
    Prepare,
    extract,
    label_classes,
    label_numbers,
)
from tcjepa.evaluate.linear import ProbeResult, probe
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.rasterise import IGNORED, categories, parse, rasterise
from tcjepa.evaluate.report import EvaluationResult, SpectrumResult
from tcjepa.evaluate.segmentation import SegmentationResult, segment
from tcjepa.evaluate.spectrum import feature_std, rankme
from tcjepa.model.jepa import normalise

FOLDER_LABEL = "class"
"""Record key of an image folder's class, used where the config names no labels."""


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
) -> EvaluationResult:
    """Measure a frozen encoder on labelled images.

    Batches are pairs of images (B, 3, H, H) uint8, already resized and centre-cropped to
    `config.image_size`, and B records. A record maps label names to text or integers (None or
    absent where unknown) and may have `annotations` (dict or JSON text), which then needs the
    original `width` and `height` [pixels]. Pass images in random order where `max_train`,
    `max_test` or segmentation's limits cut the set short: the first images are taken. `prepare`
    must be what the encoder was trained with (see `extract`); the totals are for progress lines.

    Raises `ValueError` for empty sets, labels that no training record has and encoders that do not
    return finite (B, P, D) tokens.
    """
    dense = "segmentation" in config.tasks
    limits = config.segmentation
    train = extract(
        encoder,
        train_batches,
        device,
        prepare=prepare,
        keep_patches=_annotated if dense else None,
        max_images=config.max_train,
        max_patches=limits.max_train,
        total=train_total,
        label="train features",
    )
    test = extract(
        encoder,
        test_batches,
        device,
        prepare=prepare,
        keep_patches=_annotated if dense else None,
        max_images=config.max_test,
        max_patches=limits.max_test,
        total=test_total,
        label="test features",
    )
    notes: list[str] = []
    linear: dict[str, ProbeResult] = {}
    neighbours: dict[str, Measure] = {}
    if "linear" in config.tasks or "knn" in config.tasks:
        for name in config.labels or [FOLDER_LABEL]:
            data = _labelled(train, test, name, device, notes)
            if "linear" in config.tasks:
                linear[name] = _probe(data, config, name, notes)
            if "knn" in config.tasks:
                neighbours[name] = _neighbours(data, config, name, notes)
    return EvaluationResult(
        train_images=len(train),
        test_images=len(test),
        linear=linear,
        knn=neighbours,
        segmentation=_segment(train, test, config, device, notes) if dense else None,
        spectrum=_spectrum(test) if "spectrum" in config.tasks else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Labelled:
    """Features and class numbers of the images that have one label."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]


def _labelled(
    train: Features, test: Features, name: str, device: torch.device, notes: list[str]
) -> _Labelled:
    classes = label_classes(train.records, name)
    known = label_numbers(train.records, name, classes)
    asked = label_numbers(test.records, name, classes)
    for part, numbers in (("training", known), ("test", asked)):
        if missing := int((numbers == -2).sum()):
            notes.append(f"{name}: {missing} {part} images without the label were left out")
    if unseen := int((asked == -1).sum()):
        notes.append(f"{name}: {unseen} test images have a class not seen in training: all wrong")
    if not int((asked != -2).sum()):
        raise ValueError(f"label {name!r}: no test record has it")
    return _Labelled(
        train.pooled[known != -2].to(device),
        known[known != -2].to(device),
        test.pooled[asked != -2].to(device),
        asked[asked != -2].to(device),
        classes,
    )


def _probe(data: _Labelled, config: EvaluateConfig, name: str, notes: list[str]) -> ProbeResult:
    result = probe(
        data.train,
        data.train_labels,
        data.test,
        data.test_labels,
        classes=len(data.classes),
        config=config.linear,
        seeds=config.seeds,
    )
    notes += [f"linear {name}: the best setting has the sweep's {edge}" for edge in result.edges]
    return result


def _neighbours(data: _Labelled, config: EvaluateConfig, name: str, notes: list[str]) -> Measure:
    k = min(config.knn.k, len(data.train))
    if k < config.knn.k:
        notes.append(f"kNN {name}: k is {k}, all training images, instead of {config.knn.k}")
    predicted = knn.predict(
        data.train,
        data.train_labels,
        data.test,
        len(data.classes),
        k=k,
        temperature=config.knn.temperature,
    )
    right = float((predicted == data.test_labels).double().mean())
    return Measure.accuracy([right], len(data.test))


def _segment(
    train: Features, test: Features, config: EvaluateConfig, device: torch.device, notes: list[str]
) -> SegmentationResult | None:
    if train.patches is None or test.patches is None or train.patch_rows is None:
        notes.append("segmentation: skipped, no image of the training or the test set is annotated")
        return None
    truth = [_annotations(train), _annotations(test)]
    classes = categories(truth[0])
    train_masks, test_masks = (
        _masks(features, parsed, classes, config.image_size)
        for features, parsed in zip((train, test), truth, strict=True)
    )
    if unseen := int((test_masks == IGNORED).any(dim=2).any(dim=1).sum()):
        notes.append(
            f"segmentation: {unseen} test images show a category not seen in training; "
            "its pixels are ignored"
        )
    result = segment(
        train.patches.to(device),
        train_masks.to(device),
        test.patches.to(device),
        test_masks.to(device),
        classes=["background", *classes],
        config=config.segmentation.sweep,
        seeds=config.seeds,
    )
    notes += [f"segmentation: the best setting has the sweep's {edge}" for edge in result.edges]
    return result


def _annotated(record: dict[str, Any]) -> bool:
    return record.get("annotations") is not None


def _annotations(features: Features) -> list[dict[str, Any]]:
    rows = [] if features.patch_rows is None else features.patch_rows.tolist()
    return [parse(features.records[row]["annotations"]) for row in rows]


def _masks(
    features: Features, parsed: list[dict[str, Any]], classes: list[str], size: int
) -> Tensor:
    rows = [] if features.patch_rows is None else features.patch_rows.tolist()
    masks = np.zeros((len(rows), size, size), np.uint8)
    for mask, row, one in zip(masks, rows, parsed, strict=True):
        record = features.records[row]
        if not record.get("width") or not record.get("height"):
            raise ValueError("a record with annotations needs the image's width and height")
        mask[:] = rasterise(one, size, classes, width=record["width"], height=record["height"])
    return torch.from_numpy(masks)


def _spectrum(test: Features) -> SpectrumResult:
    return SpectrumResult(rankme(test.pooled), feature_std(test.pooled), test.pooled.shape[1])


__all__ = ["FOLDER_LABEL", "evaluate"]
