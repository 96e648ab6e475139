"""Linear probe: multinomial logistic regression on frozen, pooled features; all labels or a few.

Each seed draws its own validation split from the training images, trains every setting of the grid
on the rest, takes the setting with the best validation accuracy, trains it again on all training
images and is scored once on the test set, which no choice ever sees.

Shapes: n training and m test images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tcjepa.evaluate.config import SweepConfig
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.sweep import Classifiers, Setting, Standardiser, grid, train

_CHUNK = 4096


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy of a linear probe and what it took to get there.

    `majority` is the test accuracy of always answering the commonest training class; `chosen` has
    one setting per seed; `edges` names the sweep's ends that won, since a better setting may then
    lie outside.
    """

    accuracy: Measure
    majority: float
    classes: int
    chosen: tuple[Setting, ...]
    edges: tuple[str, ...]


def probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    classes: int,
    config: SweepConfig,
    seeds: int,
) -> tuple[ProbeResult, Tensor]:
    """Probe features (n, D) and (m, D), float, with labels (n,) and (m,) int64 below `classes`.

    All tensors lie on one device. Features are standardised by the training images' statistics. A
    negative test label is a class that training images lack; no answer to it is right. The second
    result (m,) float64, on the CPU, is the share of seeds that got each test image right. Raises
    `ValueError` for fewer than two training images, no test image or a training label out of range.
    """
    _check(train_features, train_labels, test_features, classes)
    standardise = Standardiser.fit(train_features)
    data = _Data(standardise(train_features), train_labels, classes)
    tested = standardise(test_features)
    found = [_probe_once(data, tested, test_labels, config, seed) for seed in range(seeds)]
    return _result(found, train_labels, test_labels, classes, config)


def few_shot_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    share: float,
    classes: int,
    config: SweepConfig,
    seeds: int,
) -> tuple[ProbeResult, Tensor]:
    """Probe as `probe` does, but with the labels of a `share` of the training images only.

    Each seed draws its own images (`few_shot_rows`), so the error over seeds covers that choice.
    Features are standardised by the images drawn.
    """
    _check(train_features, train_labels, test_features, classes)
    found = []
    for seed in range(seeds):
        rows = few_shot_rows(train_labels, share, seed)
        standardise = Standardiser.fit(train_features[rows])
        data = _Data(standardise(train_features[rows]), train_labels[rows], classes)
        found.append(_probe_once(data, standardise(test_features), test_labels, config, seed))
    return _result(found, train_labels, test_labels, classes, config)


def few_shot_rows(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return the rows of a random `share` of each class, at least two of each that has as many.

    Drawn class by class, as the 1% and 10% lists of ImageNet are (SimCLR, Chen et al. 2020).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator).to(labels.device)
        drawn.append(members[order[: max(2, round(share * len(members)))]])
    return torch.cat(drawn).sort().values


def split(count: int, share: float, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row numbers (fit, validation) of a random split; both keep at least one row."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    held = min(max(round(count * share), 1), count - 1)
    return order[held:], order[:held]


def edges(chosen: Sequence[Setting], config: SweepConfig) -> tuple[str, ...]:
    """Return which ends of the grid most seeds chose, such as "highest learning rate".

    A weight decay of 0 has nothing below it and is no edge; nor is the end of a one-value axis.
    Where nothing can be learnt, seeds choose at random: hence the majority.
    """
    found = []
    axes = {
        "learning rate": (config.learning_rates, [s.learning_rate for s in chosen]),
        "weight decay": (config.weight_decays, [s.weight_decay for s in chosen]),
    }
    for name, (swept, picked) in axes.items():
        for end, value in (("lowest", min(swept)), ("highest", max(swept))):
            if len(swept) > 1 and value > 0 and 2 * picked.count(value) > len(picked):
                found.append(f"{end} {name}")
    return tuple(found)


def hits(classifiers: Classifiers, rows: Tensor, labels: Tensor) -> Tensor:
    """Return whether each of the G classifiers gets each row of (m, D) right, (m, G) bool."""
    parts = zip(torch.split(rows, _CHUNK), torch.split(labels, _CHUNK), strict=True)
    return torch.cat(
        [classifiers.logits(chunk).argmax(dim=2) == truth[:, None] for chunk, truth in parts]
    )


@dataclass(frozen=True)
class _Data:
    """Standardised training rows (n, D), their labels (n,) and K."""

    rows: Tensor
    labels: Tensor
    classes: int


def _probe_once(
    data: _Data, tested: Tensor, truth: Tensor, config: SweepConfig, seed: int
) -> tuple[Tensor, Setting]:
    """Return one seed's hits (m,) on test images and the setting that its validation chose."""
    settings = grid(config.learning_rates, config.weight_decays)
    best = settings[_choose(data, settings, config, seed) if len(settings) > 1 else 0]
    everything = torch.arange(len(data.rows), device=tested.device)
    final = _fit(data, everything, [best], config, seed)
    return hits(final, tested, truth)[:, 0].double().cpu(), best


def _result(
    found: list[tuple[Tensor, Setting]],
    train_labels: Tensor,
    test_labels: Tensor,
    classes: int,
    config: SweepConfig,
) -> tuple[ProbeResult, Tensor]:
    chosen = tuple(setting for _, setting in found)
    commonest = int(train_labels.bincount().argmax())
    right = torch.stack([own for own, _ in found])  # (seeds, m)
    result = ProbeResult(
        accuracy=Measure.accuracy(right.mean(dim=1).tolist(), len(test_labels)),
        majority=float((test_labels == commonest).double().mean()),
        classes=classes,
        chosen=chosen,
        edges=edges(chosen, config) if classes > 1 else (),  # of one class, all settings are right
    )
    return result, right.mean(dim=0)


def _choose(data: _Data, settings: list[Setting], config: SweepConfig, seed: int) -> int:
    fit, held = split(len(data.rows), config.validation_share, seed, data.rows.device)
    swept = _fit(data, fit, settings, config, seed)
    right = hits(swept, data.rows[held], data.labels[held]).sum(dim=0)
    # Of few images many settings get as many right; the first of the grid would be under-trained.
    best = (right == right.max()).nonzero()[:, 0]
    return int(best[len(best) // 2])


def _fit(
    data: _Data, chosen: Tensor, settings: list[Setting], config: SweepConfig, seed: int
) -> Classifiers:
    def minibatch(numbers: Tensor) -> tuple[Tensor, Tensor]:
        targets = torch.nn.functional.one_hot(data.labels[numbers], data.classes).float()
        return data.rows[numbers], targets

    return train(
        minibatch,
        chosen,
        (data.rows.shape[1], data.classes),
        settings,
        epochs=config.epochs,
        batch=config.batch,
        seed=seed,
    )


def _check(rows: Tensor, labels: Tensor, tested: Tensor, classes: int) -> None:
    if len(rows) < 2 or not len(tested):
        raise ValueError(
            f"a linear probe needs two training images and one test image, "
            f"got {len(rows)} and {len(tested)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"training labels must lie in [0, {classes})")


__all__ = [
    "ProbeResult",
    "edges",
    "few_shot_probe",
    "few_shot_rows",
    "hits",
    "probe",
    "split",
]
