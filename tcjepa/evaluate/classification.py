"""What can be told from pooled features: linear probes with all labels and with a few, and kNN."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tcjepa.evaluate import knn
from tcjepa.evaluate.config import EvaluateConfig
from tcjepa.evaluate.features import Features, LabelError, label_classes, label_numbers
from tcjepa.evaluate.linear import ProbeResult, few_shot_probe, few_shot_rows, probe
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.tally import Tally, keys_of

FOLDER_LABEL = "class"
"""Record key of an image folder's class, used where the config names no labels."""


@dataclass(frozen=True)
class Classification:
    """Results by label; few-shot ones by label and share, such as "colour 1%".

    `tallies` has the hits on every labelled test image, by the measure's column name.
    """

    linear: dict[str, ProbeResult] = field(default_factory=dict)
    few_shot: dict[str, ProbeResult] = field(default_factory=dict)
    knn: dict[str, Measure] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)


def classify(
    train: Features,
    test: Features,
    config: EvaluateConfig,
    device: torch.device,
    notes: list[str],
) -> Classification:
    """Return what the configured tasks find for every label; caveats are added to `notes`.

    Raises `LabelError` for labels that no record has.
    """
    found = Classification()
    if not {"linear", "few_shot", "knn"} & set(config.tasks):
        return found
    if not config.labels and not any(FOLDER_LABEL in record for record in train.records):
        notes.append("linear probe, kNN: skipped, the images have no class and no label was named")
        return found
    for name in config.labels or [FOLDER_LABEL]:
        data = _labelled(train, test, name, device, notes)
        hits: dict[str, Tensor] = {}
        if "linear" in config.tasks:
            found.linear[name], hits[f"linear {name}"] = _probe(data, config, name, notes)
        if "few_shot" in config.tasks:
            for key, (result, right) in _few_shot(data, config, name, notes).items():
                found.few_shot[key], hits[f"few-shot {key}"] = result, right
        if "knn" in config.tasks:
            found.knn[name], hits[f"kNN {name}"] = _neighbours(data, config, name, notes)
        for measure, right in hits.items():
            found.tallies[measure] = Tally.of_values(data.images, right.numpy())
    return found


@dataclass(frozen=True)
class _Labelled:
    """Features and class numbers of the images that have one label; keys of the test images."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]
    images: list[str]


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
    if len(classes) == 1:
        notes.append(f"{name}: training images have one class only, so accuracy says nothing")
    if not int((asked != -2).sum()):
        raise LabelError(f"label {name!r}: no test record has it")
    images = keys_of(test.records)
    return _Labelled(
        train.pooled[known != -2].to(device),
        known[known != -2].to(device),
        test.pooled[asked != -2].to(device),
        asked[asked != -2].to(device),
        classes,
        [images[row] for row in (asked != -2).nonzero()[:, 0].tolist()],
    )


def _probe(
    data: _Labelled, config: EvaluateConfig, name: str, notes: list[str]
) -> tuple[ProbeResult, Tensor]:
    result, hits = probe(
        data.train,
        data.train_labels,
        data.test,
        data.test_labels,
        classes=len(data.classes),
        config=config.linear,
        seeds=config.seeds,
    )
    notes += [f"linear {name}: the best setting has the sweep's {edge}" for edge in result.edges]
    return result, hits


def _few_shot(
    data: _Labelled, config: EvaluateConfig, name: str, notes: list[str]
) -> dict[str, tuple[ProbeResult, Tensor]]:
    found = {}
    for share in config.few_shot:
        key = f"{name} {100 * share:g}%"
        found[key] = few_shot_probe(
            data.train,
            data.train_labels,
            data.test,
            data.test_labels,
            share=share,
            classes=len(data.classes),
            config=config.linear,
            seeds=config.seeds,
        )
        drawn = len(few_shot_rows(data.train_labels, share, 0))
        if drawn > 2 * share * len(data.train):
            notes.append(f"few-shot {key}: two images of each class, {drawn} in all, are more")
    return found


def _neighbours(
    data: _Labelled, config: EvaluateConfig, name: str, notes: list[str]
) -> tuple[Measure, Tensor]:
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
    hits = (predicted == data.test_labels).double().cpu()
    return Measure.accuracy([float(hits.mean())], len(data.test)), hits


__all__ = ["FOLDER_LABEL", "Classification", "classify"]
