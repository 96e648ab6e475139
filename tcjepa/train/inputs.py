"""From a batch of the loader to what the model takes, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from tcjepa.config import TrainConfig
from tcjepa.data.loader import Batch
from tcjepa.masks import Masks, sample_masks
from tcjepa.model.jepa import normalise
from tcjepa.text import TextBatch, TextEncoder
from tcjepa.train.distributed import World


@dataclass(frozen=True)
class Inputs:
    """One forward pass: normalised images (m, 3, H, W), their masks, and captions if used."""

    images: Tensor
    masks: Masks
    text: TextBatch | None


class InputMaker:
    """Makes this rank's inputs of a step; a pure function of (config, batch, step)."""

    def __init__(
        self, config: TrainConfig, grid: tuple[int, int], world: World, text: TextEncoder | None
    ) -> None:
        self._config, self._grid, self._world, self._text = config, grid, world, text

    def micro_batches(self, batch: Batch, step: int) -> Iterator[tuple[Inputs, float]]:
        """Yield (inputs, share of this rank's batch), in order of position.

        Masks belong to positions of the global batch: they depend neither on the number of ranks
        nor on the micro-batch. Raises `ConfigError` if the grid is too small for them.
        """
        config, device = self._config, self._world.device
        local = len(batch.images)
        size = min(config.train.micro_batch or local, local)
        first = self._world.rank * local
        masks = sample_masks(
            config.masks,
            self._grid,
            config.train.batch,
            seed=config.train.seed,
            step=step,
            rows=slice(first, first + local),
        ).to(device)
        for start in range(0, local, size):
            part = slice(start, min(start + size, local))
            text = None
            if self._text is not None:
                text = self._text.encode(batch.captions[part], device)
            images = normalise(batch.images[part].to(device, non_blocking=True))
            inputs = Inputs(images, Masks(masks.context[part], masks.targets[part]), text)
            yield inputs, len(images) / local
