"""Images in index order with the evaluation crop, for probes and other evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.data.augment import centre_crop
from tcjepa.data.decode import SampleError, decode
from tcjepa.data.folder import ImageFolder
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import run_tasks
from tcjepa.data.reader import ShardReader
from tcjepa.data.segmented import SegmentationFolder, crop_mask
from tcjepa.data.tars import LabelledTars

Source = ShardIndex | ImageFolder | SegmentationFolder | LabelledTars
Labelled = tuple[Tensor, Tensor, list[dict[str, Any]]]

_MAX_PIXELS = 64_000_000
_CACHE_BYTES = 64 * 2**30
_PREFETCH = 2


class _Reader(Protocol):
    def image_and_sample(self, row: int) -> tuple[bytes, str, Any]: ...


def labelled(
    source: Source,
    image_size: int,
    batch: int,
    columns: Sequence[str] | None = None,
    workers: int = 0,
) -> Iterator[Labelled]:
    """Yield (images (B, 3, H, W) uint8, rows (B,) int64, B samples) in index order.

    Images get ImageNet's evaluation crop. A sample is its json member, or, with `columns`, only
    these keys of it (`"uid"`, `"captions"`, `"meta.label"`), the dotted name as key; a `mask` in it
    is (H, W) uint8, cropped as the image is. An unreadable
    image is left out with a warning, never replaced: `rows` says who is there. Raises `ConfigError`
    for a column that a sample lacks.
    """
    reader: _Reader = (
        ShardReader(source, _CACHE_BYTES) if isinstance(source, ShardIndex) else source
    )
    cropper = _Cropper(reader, image_size, tuple(columns) if columns is not None else None)
    starts = range(0, len(source), batch)
    tasks = [range(start, min(start + batch, len(source))) for start in starts]
    for images, rows, samples, errors in run_tasks(cropper, tasks, workers, _PREFETCH):
        for row, reason in errors:
            warnings.warn(f"row {row} is left out of the evaluation: {reason}", stacklevel=2)
        if len(rows):
            yield images, rows, samples


class _Cropper:
    def __init__(self, source: _Reader, size: int, columns: tuple[str, ...] | None) -> None:
        self._source, self._size, self._columns = source, size, columns

    def __getitem__(self, rows: range) -> tuple[Tensor, Tensor, list[Any], list[tuple[int, str]]]:
        images = np.empty((len(rows), 3, self._size, self._size), dtype=np.uint8)
        read: list[int] = []
        samples: list[dict[str, Any]] = []
        errors: list[tuple[int, str]] = []
        for row in rows:
            try:
                data, image_format, sample = self._source.image_and_sample(row)
                pixels = decode(data, image_format, _MAX_PIXELS)
                if "mask" in sample:
                    mask = crop_mask(sample["mask"], pixels.shape[0], pixels.shape[1], self._size)
                    sample = {**sample, "mask": mask}
            except SampleError as error:
                errors.append((row, str(error)))
                continue
            images[len(read)] = centre_crop(pixels, self._size)
            read.append(row)
            samples.append(_pick(sample, self._columns))
        kept = torch.from_numpy(images[: len(read)])
        return kept, torch.tensor(read, dtype=torch.int64), samples, errors


def _pick(sample: Mapping[str, Any], columns: tuple[str, ...] | None) -> dict[str, Any]:
    if columns is None:
        return dict(sample)
    return {name: _column(sample, name) for name in columns}


def _column(sample: Mapping[str, Any], name: str) -> Any:
    value: Any = sample
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = [*sample, *(f"meta.{key}" for key in sample.get("meta", {}))]
            raise ConfigError(f"samples have no {name!r}; they have {', '.join(known)}")
        value = value[part]
    return value
