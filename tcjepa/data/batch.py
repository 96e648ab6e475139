"""What a loader worker does: turn a list of (epoch, row) into a batch. No state, no order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.schema import Caption, Sample
from tcjepa import keyed
from tcjepa.data.augment import Box, crop_box, crop_into, cut_into
from tcjepa.data.captions import choose
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import OpenedImage, Pixels, SampleError, Scratch, open_image
from tcjepa.data.device_resize import carried_side
from tcjepa.data.errors import TooManyUnreadableError
from tcjepa.data.index import ShardIndex
from tcjepa.data.memory import BatchMemory, Place, ReadMemory, SharedBatches
from tcjepa.data.reader import ShardReader
from tcjepa.noise import CaptionNoise

_SUBSTITUTES: Final = 32
_DRAFTED: Final = 32


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; B images of H x W pixels."""

    images: Tensor  # (B, 3, H, W) uint8, cropped and resized; colours innermost in memory
    captions: list[list[str]]  # B lists of 0..N captions, noise applied
    rows: Tensor  # (B,) int64, rows of the index (of the substitute where one was needed)
    position: int  # global position of the first sample of the *global* batch
    replaced: list[tuple[str, str]]  # (uid, reason) of samples that could not be read
    place: Place | None = None  # of the images, on the way from a worker, where `images` is empty
    # (B, 2) int64, heights and widths of crops in the corners of images, for `resize_crops`; None
    # where the loader resized them.
    crops: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave only large tensors to torch's sharing.

        It opens shared memory for each tensor, and remembers it for a hundred or more: small blocks
        in between the trainer's large ones, which then find no room where they were.
        """
        state = self.__dict__ | {"rows": self.rows.tolist()}
        if self.crops is not None:
            state["crops"] = self.crops.tolist()
        if self.place is not None:
            del state["images"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("rows", "crops"):
            if state[name] is not None:
                state[name] = torch.tensor(state[name], dtype=torch.int64)
        self.__dict__.update({"images": torch.empty(0), **state})

    def received(self) -> Batch:
        """Return the batch with its images, in the process that they are for."""
        if self.place is None:
            return self
        return replace(self, images=self.place.received().permute(0, 3, 1, 2), place=None)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `DataLoader` calls this in the trainer."""
        here = self.received()
        crops = None if here.crops is None else here.crops.pin_memory()
        return replace(
            here, images=here.images.pin_memory(), rows=here.rows.pin_memory(), crops=crops
        )

    def first(self, count: int) -> Batch:
        """Return the first `count` images with all that belongs to them."""
        return replace(
            self,
            images=self.images[:count],
            captions=self.captions[:count],
            rows=self.rows[:count],
            crops=None if self.crops is None else self.crops[:count],
        )


class Task(NamedTuple):
    """A batch to build: one rank's positions of a global batch, and shared memory for it, if any.

    `memory` is a number of the builder's `SharedBatches`.
    """

    position: int
    epochs: tuple[int, ...]
    rows: tuple[int, ...]
    memory: int | None = None


class _Draft(NamedTuple):
    """A sample before its pixels: the opened image, its crop, and its captions."""

    image: OpenedImage
    box: Box
    captions: list[str]


class BatchBuilder:
    """Builds batches; a batch is a pure function of (selection, config, seed, task)."""

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        seed: int,
        shared: SharedBatches | None = None,
    ) -> None:
        self.index, self.config, self.seed, self._shared = index, config, seed, shared
        self.reader = ShardReader(index, config.cache_bytes)
        self.noise = CaptionNoise(config.noise, index, config.caption_sources)
        self._scratch, self._read, self._batches = Scratch(), ReadMemory(), BatchMemory()
        self._carries = config.resize == "device"

    def __getitem__(self, task: Task) -> Batch:
        """Return the batch of a task; `DataLoader` calls this in a worker.

        Samples are drafted some at a time before their pixels are decoded. Decoding an image sweeps
        the processor's caches: between two images the same Python takes twice as long.
        """
        there = None
        if self._shared is None or task.memory is None:
            images = self._batches.empty(len(task.rows), carried_side(self.config))
        else:
            images = self._shared[task.memory]
            there = Place(self._shared.key, task.memory)
        pixels = images.numpy()
        captions: list[list[str]] = []
        crops: list[tuple[int, int]] = []
        rows = list(task.rows)
        replaced: list[tuple[str, str]] = []
        for start in range(0, len(rows), _DRAFTED):
            places = range(start, min(start + _DRAFTED, len(rows)))
            self._read.clear()
            drafts = [self._try_draft(task.epochs[place], rows[place]) for place in places]
            for place, draft in zip(places, drafts, strict=True):
                rows[place], texts, crop = self._finish(
                    task.epochs[place], rows[place], draft, pixels[place], replaced
                )
                captions.append(texts)
                crops.append(crop)
        return Batch(
            images=torch.empty(0) if there else images.permute(0, 3, 1, 2),
            captions=captions,
            rows=torch.tensor(rows, dtype=torch.int64),
            position=task.position,
            replaced=replaced,
            place=there,
            crops=torch.tensor(crops) if self._carries else None,
        )

    def _try_draft(self, epoch: int, row: int) -> _Draft | SampleError:
        try:
            return self._draft(epoch, row)
        except SampleError as error:
            return error

    def _draft(self, epoch: int, row: int) -> _Draft:
        config = self.config
        data, image_format, sample = self.reader.image_and_sample(row, self._read)
        image = open_image(data, image_format, config.max_pixels)
        crop_key = keyed.key("crop", self.seed, epoch, sample["uid"])
        box = crop_box(image.height, image.width, config.crop_scale, config.crop_ratio, crop_key)
        return _Draft(image, box, self._captions(epoch, row, sample))

    def _finish(
        self,
        epoch: int,
        row: int,
        draft: _Draft | SampleError,
        out: Pixels,
        replaced: list[tuple[str, str]],
    ) -> tuple[int, list[str], tuple[int, int]]:
        """Write the crop of a row, or of its first readable substitute.

        Return (row, captions, height and width in `out`); `out` is (side, side, 3). Substitutes are
        a sequence keyed by (seed, epoch, uid), so every rerun takes the same.
        """
        for candidate, found in chain([(row, draft)], self._substitutes(epoch, row)):
            try:
                if isinstance(found, SampleError):
                    raise found
                return candidate, found.captions, self._write(out, found)
            except SampleError as error:
                replaced.append((self.index.entry(candidate).uid, str(error)))
        raise TooManyUnreadableError(
            f"row {row} and its {_SUBSTITUTES} substitutes are all unreadable, the last because: "
            f"{replaced[-1][1]}"
        )

    def _write(self, out: Pixels, draft: _Draft) -> tuple[int, int]:
        size = self.config.image_size
        if self._carries:
            return cut_into(out, draft.image, draft.box, size, self._scratch)
        crop_into(out, draft.image, draft.box, self._scratch)
        return size, size

    def _substitutes(self, epoch: int, row: int) -> Iterator[tuple[int, _Draft | SampleError]]:
        uid = self.index.entry(row).uid
        words = keyed.bits(keyed.key("substitute", self.seed, epoch, uid), _SUBSTITUTES)
        for candidate in (words % np.uint64(len(self.index))).tolist():
            yield candidate, self._try_draft(epoch, candidate)

    def _captions(self, epoch: int, row: int, sample: Sample) -> list[str]:
        captions, uid = sample["captions"], sample["uid"]
        numbers = choose(captions, self.config, self.seed, epoch, uid)
        if not self.noise.active:
            return [captions[n]["text"] for n in numbers]
        return [self._noisy(row, uid, n, captions) for n in numbers]

    def _noisy(self, row: int, uid: str, number: int, captions: Sequence[Caption]) -> str:
        try:
            return self.noise.text(row, uid, number, captions, self._captions_of)
        except SampleError:
            # The image that was to lend a caption cannot be read, which the ledger says when its
            # own turn comes. This one is sound, and is trained on in every arm of a study.
            return captions[number]["text"]

    def _captions_of(self, row: int) -> Sequence[Caption]:
        return self.reader.sample(row)["captions"]
