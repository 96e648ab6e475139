"""What a loader worker does: turn a list of (epoch, row) into a batch. No state, no order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.schema import Caption, Sample
from tcjepa import keyed
from tcjepa.data.augment import random_crop
from tcjepa.data.captions import choose
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import Pixels, SampleError, decode
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader
from tcjepa.noise import CaptionNoise

_SUBSTITUTES: Final = 32


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; B images of H x W pixels."""

    images: Tensor  # (B, 3, H, W) uint8, cropped and resized
    captions: list[list[str]]  # B lists of 0..N captions, noise applied
    rows: Tensor  # (B,) int64, rows of the index (of the substitute where one was needed)
    position: int  # global position of the first sample of the *global* batch
    replaced: list[tuple[str, str]]  # (uid, reason) of samples that could not be read

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `DataLoader` calls this."""
        return replace(self, images=self.images.pin_memory(), rows=self.rows.pin_memory())


class Task(NamedTuple):
    """A batch to build: one rank's positions of a global batch."""

    position: int
    epochs: tuple[int, ...]
    rows: tuple[int, ...]


class BatchBuilder:
    """Builds batches; a batch is a pure function of (selection, config, seed, task)."""

    def __init__(self, index: ShardIndex, config: DataConfig, seed: int) -> None:
        self.index, self.config, self.seed = index, config, seed
        self.reader = ShardReader(index, config.cache_bytes)
        self.noise = CaptionNoise(config.noise, index)

    def __getitem__(self, task: Task) -> Batch:
        """Return the batch of a task; `DataLoader` calls this in a worker."""
        size = self.config.image_size
        images = np.empty((len(task.rows), 3, size, size), dtype=np.uint8)
        captions: list[list[str]] = []
        rows = list(task.rows)
        replaced: list[tuple[str, str]] = []
        for place, (epoch, row) in enumerate(zip(task.epochs, task.rows, strict=True)):
            rows[place], pixels, texts = self._readable(epoch, row, replaced)
            images[place] = pixels
            captions.append(texts)
        return Batch(
            images=torch.from_numpy(images),
            captions=captions,
            rows=torch.tensor(rows, dtype=torch.int64),
            position=task.position,
            replaced=replaced,
        )

    def _readable(
        self, epoch: int, row: int, replaced: list[tuple[str, str]]
    ) -> tuple[int, Pixels, list[str]]:
        """Return (row, pixels, captions) of a row, or of the first readable substitute.

        Substitutes are a sequence keyed by (seed, epoch, uid), so every rerun takes the same.
        """
        candidate = row
        substitutes = None
        for attempt in range(_SUBSTITUTES + 1):
            try:
                return candidate, *self._load(epoch, candidate)
            except SampleError as error:
                replaced.append((self.index.entry(candidate).uid, str(error)))
            if substitutes is None:
                uid = self.index.entry(row).uid
                words = keyed.bits(keyed.key("substitute", self.seed, epoch, uid), _SUBSTITUTES)
                substitutes = (words % np.uint64(len(self.index))).tolist()
            candidate = substitutes[min(attempt, _SUBSTITUTES - 1)]
        raise RuntimeError(
            f"row {row} and its {_SUBSTITUTES} substitutes are all unreadable, the last because: "
            f"{replaced[-1][1]}"
        )

    def _load(self, epoch: int, row: int) -> tuple[Pixels, list[str]]:
        config = self.config
        data, image_format, sample = self.reader.image_and_sample(row)
        pixels = decode(data, image_format, config.max_pixels)
        crop_key = keyed.key("crop", self.seed, epoch, sample["uid"])
        crop = random_crop(
            pixels, config.image_size, config.crop_scale, config.crop_ratio, crop_key
        )
        return crop, self._captions(epoch, row, sample)

    def _captions(self, epoch: int, row: int, sample: Sample) -> list[str]:
        captions, uid = sample["captions"], sample["uid"]
        numbers = choose(captions, self.config, self.seed, epoch, uid)
        return [self.noise.text(row, uid, n, captions, self._captions_of) for n in numbers]

    def _captions_of(self, row: int) -> Sequence[Caption]:
        return self.reader.sample(row)["captions"]
