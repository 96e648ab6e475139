"""Frozen features of a set of images, with what the records say about each.

Shapes: B images of a batch, n images of the set, P patches, D features, H pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.progress import Progress
from tcjepa.model.jepa import normalise

Batches = Iterable[tuple[Tensor, list[dict[str, Any]]]]
"""Pairs of images (B, 3, H, H) uint8 and B records."""
Prepare = Callable[[Tensor], Tensor]
"""Images (B, 3, H, H) uint8 on the device -> what the encoder was trained on, float."""


class LabelError(ValueError):
    """A label that the records do not have, or not as a class."""


@dataclass(frozen=True)
class Features:
    """What an encoder says about n images.

    `pooled` (n, D) float32, on the CPU, is the average of the patch tokens. `records` has one dict
    per image. `patches` (p, P, D) float16, on the CPU, belongs to images `patch_rows` (p,) int64;
    None where no patches were asked for.
    """

    pooled: Tensor
    records: list[dict[str, Any]]
    patches: Tensor | None = None
    patch_rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)


def extract(
    encoder: nn.Module,
    batches: Batches,
    device: torch.device,
    *,
    prepare: Prepare = normalise,
    keep_patches: Callable[[dict[str, Any]], bool] | None = None,
    max_images: int | None = None,
    max_patches: int | None = None,
    total: int | None = None,
    label: str = "features",
) -> Features:
    """Run a frozen encoder over batches of images.

    `encoder(images)` returns patch tokens (B, P, D); it runs in evaluation mode, without autograd,
    in bfloat16 autocast on CUDA and in its own precision elsewhere; its mode is restored. `prepare`
    turns bytes into what the encoder expects (default: what `TCJEPA` trains on). Patch tokens are
    kept for the first `max_patches` images whose record `keep_patches` accepts. Reading stops after
    `max_images`; `total` [images] is for the progress line, which needs it. Raises `ValueError` for
    no images, output that is not (B, P, D) and features that are not finite.
    """
    pooled: list[Tensor] = []
    records: list[dict[str, Any]] = []
    kept: list[Tensor] = []
    rows: list[int] = []
    with frozen(encoder), _progress(label, total, max_images) as progress:
        for images, said in _first(batches, max_images):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                tokens = encoder(prepare(images.to(device, non_blocking=True)))
            _check(tokens, len(images))
            pooled.append(tokens.float().mean(dim=1).cpu())
            chosen = _chosen(said, keep_patches, max_patches, len(rows))
            if chosen:
                kept.append(tokens[chosen].to(torch.float16).cpu())
                rows += [len(records) + index for index in chosen]
            records += said
            if progress is not None:
                progress.advance(len(images))
    if not pooled:
        raise ValueError("no images to evaluate on")
    features = Features(
        pooled=torch.cat(pooled),
        records=records,
        patches=torch.cat(kept) if kept else None,
        patch_rows=torch.tensor(rows) if kept else None,
    )
    for values in (features.pooled, features.patches):
        if values is not None and not bool(values.isfinite().all()):
            raise ValueError("features are not finite: the encoder has diverged")
    return features


def label_classes(records: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Return the sorted classes that records give a label `name`; None and absence are no class.

    Integers and booleans sort by value, text by character. Raises `LabelError` where a value is
    something else (a float or a list is no class) or where no record has the label.
    """
    values = {value for value in _labels(records, name) if value is not None}
    if not values:
        raise LabelError(f"label {name!r}: no record has it")
    numeric = not any(isinstance(value, str) for value in values)
    return [str(value) for value in (sorted(values) if numeric else sorted(map(str, values)))]


def label_numbers(records: Iterable[Mapping[str, Any]], name: str, classes: list[str]) -> Tensor:
    """Return class numbers (n,) int64: -1 for a class not in `classes`, -2 for no label.

    Raises `LabelError` where a value is no class, as `label_classes` does.
    """
    number = {known: index for index, known in enumerate(classes)}
    values = _labels(records, name)
    return torch.tensor([-2 if v is None else number.get(str(v), -1) for v in values])


def _labels(records: Iterable[Mapping[str, Any]], name: str) -> Iterator[str | int | None]:
    for record in records:
        value = record.get(name)
        if value is not None and not isinstance(value, (str, int)):
            raise LabelError(
                f"label {name!r} has a value of type {type(value).__name__}, {value!r:.80}; labels "
                "must be text, integers or booleans"
            )
        yield value


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Run an encoder in evaluation mode and without autograd; its mode is restored."""
    training = encoder.training
    encoder.eval()
    try:
        # no_grad, not inference_mode: inference tensors may not meet autograd later, and callers
        # evaluate in the middle of training.
        with torch.no_grad():
            yield
    finally:
        encoder.train(training)


def _progress(label: str, total: int | None, most: int | None) -> Progress | nullcontext[None]:
    if total is None:
        return nullcontext()
    return Progress(label, total if most is None else min(total, most), "images")


def _first(batches: Batches, most: int | None) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
    seen = 0
    for images, records in batches:
        if len(images) != len(records):
            raise ValueError(f"a batch has {len(images)} images and {len(records)} records")
        room = len(records) if most is None else most - seen
        yield images[:room], records[:room]
        seen += len(records)
        if most is not None and seen >= most:
            return


def _chosen(
    records: list[dict[str, Any]],
    wanted: Callable[[dict[str, Any]], bool] | None,
    most: int | None,
    had: int,
) -> list[int]:
    if wanted is None:
        return []
    indices = [index for index, record in enumerate(records) if wanted(record)]
    return indices if most is None else indices[: max(most - had, 0)]


def _check(tokens: Any, count: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or len(tokens) != count:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"the encoder must return patch tokens ({count}, P, D), got {got}")


__all__ = [
    "Batches",
    "Features",
    "LabelError",
    "Prepare",
    "extract",
    "frozen",
    "label_classes",
    "label_numbers",
]
