"""Images in index order with the evaluation crop, for probes and other evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tcjepa.data.augment import centre_crop
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import Encoded, SampleError, decode
from tcjepa.data.folder import ImageFolder
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import run_tasks
from tcjepa.data.reader import ShardReader
from tcjepa.data.segmented import SegmentationFolder, crop_mask
from tcjepa.data.tars import LabelledTars

Source = ShardIndex | ImageFolder | SegmentationFolder | LabelledTars
Labelled = tuple[Tensor, Tensor, list[dict[str, Any]]]

_PREFETCH = 2


class _Reader(Protocol):
    def image_and_sample(self, row: int) -> tuple[Encoded, str, Any]: ...


def labelled(
    source: Source, image_size: int, batch: int, config: DataConfig, workers: int = 0
) -> Iterator[Labelled]:
    """Yield (images (B, 3, H, W) uint8, rows (B,) int64, B samples) in the source's order.

    Images get ImageNet's evaluation crop. A sample is its json member; a `mask` in it is (H, W)
    uint8, cropped as the image is. An unreadable image is left out with a warning, never replaced:
    `rows` says who is there. Of `config` only `max_pixels` and `cache_bytes` are read.
    """
    reader: _Reader = (
        ShardReader(source, config.cache_bytes) if isinstance(source, ShardIndex) else source
    )
    cropper = _Cropper(reader, image_size, config.max_pixels)
    starts = range(0, len(source), batch)
    tasks = [range(start, min(start + batch, len(source))) for start in starts]
    for images, rows, samples, errors in run_tasks(cropper, tasks, workers, _PREFETCH):
        for row, reason in errors:
            warnings.warn(f"row {row} is left out of the evaluation: {reason}", stacklevel=2)
        if len(rows):
            yield images, rows, samples


class _Cropper:
    def __init__(self, source: _Reader, size: int, max_pixels: int) -> None:
        self._source, self._size, self._max_pixels = source, size, max_pixels

    def __getitem__(self, rows: range) -> tuple[Tensor, Tensor, list[Any], list[tuple[int, str]]]:
        images = np.empty((len(rows), 3, self._size, self._size), dtype=np.uint8)
        read: list[int] = []
        samples: list[dict[str, Any]] = []
        errors: list[tuple[int, str]] = []
        for row in rows:
            try:
                data, image_format, sample = self._source.image_and_sample(row)
                pixels = decode(data, image_format, self._max_pixels)
                if "mask" in sample:
                    mask = crop_mask(sample["mask"], pixels.shape[0], pixels.shape[1], self._size)
                    sample = {**sample, "mask": mask}
            except SampleError as error:
                errors.append((row, str(error)))
                continue
            images[len(read)] = centre_crop(pixels, self._size)
            read.append(row)
            samples.append(dict(sample))
        kept = torch.from_numpy(images[: len(read)])
        return kept, torch.tensor(read, dtype=torch.int64), samples, errors
