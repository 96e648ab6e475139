"""From a batch of the loader to what the model takes, micro-batch by micro-batch.

On a GPU inputs are made on a stream of their own, by kernels and copies that nothing waits for: the
captions of a micro-batch are encoded while the model still computes the one before it. Across steps
the first micro-batch is made ahead, as soon as the last one of the step before has been launched,
so that neither fetching losses nor saving leaves the GPU without its next inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tcjepa.config import TrainConfig
from tcjepa.data.device_resize import resize_crops
from tcjepa.data.loader import Batch
from tcjepa.masks import Masks, sample_masks
from tcjepa.model.jepa import normalise
from tcjepa.model.learner import Inputs
from tcjepa.text import TextBatch, TextEncoder, pad_shapes
from tcjepa.train.distributed import World
from tcjepa.train.labels import Labels


@dataclass(frozen=True)
class _Part:
    """A micro-batch in the making: its share of the batch, and on a GPU when it is made."""

    inputs: Inputs
    share: float
    made: torch.cuda.Event | None


@dataclass(frozen=True)
class _Coming:
    """A batch in training and the one after it."""

    current: Batch
    following: Batch
    step: int  # of `following`


@dataclass(frozen=True)
class _Started:
    """A batch whose first part is made, or being made, and whose others will be."""

    batch: Batch
    step: int
    first: _Part
    others: Iterator[_Part]


class InputMaker:
    """Makes this rank's inputs of a step; a pure function of (config, batch, step).

    A JEPA gets masks; the contrastive baseline the first caption of each image, which is one drawn
    at random (`tcjepa.data.captions.choose`); the supervised one the classes that `labels` has.
    `looks_ahead` says whether inputs are made before they are asked for; it changes no result, and
    is on for GPUs.
    """

    def __init__(
        self,
        config: TrainConfig,
        grid: tuple[int, int],
        world: World,
        text: TextEncoder | None,
        labels: Labels | None = None,
    ) -> None:
        self._config, self._grid, self._world, self._text = config, grid, world, text
        self._labels = labels
        self._is_masked = config.train.objective == "jepa"
        self._reads_one_caption = config.train.objective == "contrastive"
        on_gpu = world.device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        if on_gpu:
            self._stream = torch.cuda.Stream(world.device)  # type: ignore[no-untyped-call]
        self._pads_text = on_gpu or config.train.compile
        self.looks_ahead = on_gpu
        self._coming: _Coming | None = None
        self._started: _Started | None = None

    def ahead(self, batches: Iterable[Batch], step: int) -> Iterator[Batch]:
        """Yield the batches, each once the next has been read; `step` is the first one's.

        So the inputs of the next can be made while one is trained on (`micro_batches`), and what is
        waited for here is the loader alone. Without `looks_ahead` nothing is read early.
        """
        if not self.looks_ahead:
            yield from batches
            return
        source = iter(batches)
        current = next(source, None)
        while current is not None:
            following, step = next(source, None), step + 1
            self._coming = None if following is None else _Coming(current, following, step)
            yield current
            current = following

    def micro_batches(self, batch: Batch, step: int) -> Iterator[tuple[Inputs, float]]:
        """Yield (inputs, share of this rank's batch), in order of position.

        Masks belong to positions of the global batch: they depend neither on the number of ranks
        nor on the micro-batch. Raises `ConfigError` if the grid is too small for them.
        """
        started = self._started
        parts: Iterator[_Part] = self._make(batch, step)
        if started is not None and started.batch is batch and started.step == step:
            self._started = None
            parts = itertools.chain([started.first], started.others)
        for part in parts:
            yield _handed_over(part), part.share
        # The consumer comes back once it has launched its last backward pass.
        self._start_after(batch)

    def _start_after(self, batch: Batch) -> None:
        coming = self._coming
        if coming is None or coming.current is not batch:
            return
        self._coming = None
        others = self._make(coming.following, coming.step)
        self._started = _Started(coming.following, coming.step, next(others), others)

    def _make(self, batch: Batch, step: int) -> Iterator[_Part]:
        local = len(batch.images)
        size = min(self._config.train.micro_batch or local, local)
        with torch.cuda.stream(self._stream):
            masks = self._sample_masks(local, step) if self._is_masked else None
        for start in range(0, local, size):
            part = slice(start, min(start + size, local))
            with torch.cuda.stream(self._stream):
                images = self._images(batch, part)
                text = self._encode(batch.captions[part])
                own = Masks(masks.context[part], masks.targets[part]) if masks else None
                labels = self._sent(self._labels.of(batch.rows[part])) if self._labels else None
                inputs = Inputs(images, own, text, labels)
                made = None if self._stream is None else self._stream.record_event()
            yield _Part(inputs, len(images) / local, made)

    def _images(self, batch: Batch, part: slice) -> Tensor:
        images = self._sent(batch.images[part])
        if batch.crops is not None:
            crops = self._sent(batch.crops[part])
            images = resize_crops(images, crops, self._config.data.image_size)
        return normalise(images)

    def _sample_masks(self, local: int, step: int) -> Masks:
        config, first = self._config, self._world.rank * local
        masks = sample_masks(
            config.masks,
            self._grid,
            config.train.batch,
            seed=config.train.seed,
            step=step,
            rows=slice(first, first + local),
        )
        return Masks(self._sent(masks.context), self._sent(masks.targets))

    def encode(self, captions: list[list[str]]) -> TextBatch:
        """Return captions encoded outside of training, for use on the current stream.

        All encoding is done on this maker's stream: the encoder's cache lives there.
        """
        assert self._text is not None
        with torch.cuda.stream(self._stream):
            text = self._text.encode(captions, self._world.device)
        if self._stream is not None:
            now = torch.cuda.current_stream()
            now.wait_stream(self._stream)
            for tensor in (text.words, text.valid, text.caption):
                tensor.record_stream(now)
        return text

    def _encode(self, captions: list[list[str]]) -> TextBatch | None:
        if self._text is None:
            return None
        most = self._config.data.captions_per_image
        if self._reads_one_caption:
            captions, most = [own[:1] for own in captions], 1
        text = self._text.encode(captions, self._world.device)
        if self._pads_text:
            text = pad_shapes(text, most)
            # A graph for each of the few N. Were it one size for all, and unknown to the compiler,
            # DDP could not cut the graph where that size crosses from one bucket to the next.
            torch._dynamo.mark_static(text.caption, 1)
        return text

    def _sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device; only from page-locked memory is nothing waited for."""
        if self._stream is not None and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self._world.device, non_blocking=True)


def _handed_over(part: _Part) -> Inputs:
    """Return the inputs for use on the current stream, which first waits until they are made."""
    if part.made is not None:
        stream = torch.cuda.current_stream()
        stream.wait_event(part.made)
        for tensor in part.inputs.tensors():
            # Their memory may be used again only when this stream is done with it too.
            tensor.record_stream(stream)
    return part.inputs


__all__ = ["InputMaker"]
