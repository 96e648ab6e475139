"""Model FLOPs utilisation (MFU) of a run: useful work against what its GPUs could do at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tcjepa.bench.flops import Captions, baseline_flops, flops_per_image, peak_flops
from tcjepa.config import TrainConfig
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextEncoder
from tcjepa.train.distributed import World
from tcjepa.train.objective import make_model


class Utilisation:
    """Turns images/s into MFU as PaLM defines it (arXiv 2204.02311, App. B).

    FLOPs are those of `tcjepa.bench.flops`, without the text encoder's, against the dense bf16 peak
    of all ranks' GPUs. Where no peak is known, on CPUs among others, it says nothing.
    """

    def __init__(self, config: TrainConfig, world: World, text: TextEncoder | None) -> None:
        self._config, self._text = config, text
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        peak = peak_flops(name)
        self._peak = None if peak is None else peak * world.size
        self._flops: float | None = None

    def look_at(self, captions: Sequence[Sequence[str]]) -> None:
        """Take the captions of some images (B lists) for the run's average text."""
        if self._peak is not None and self._flops is None:
            self._flops = self.flops(captions)

    def flops(self, captions: Sequence[Sequence[str]]) -> float:
        """Return the model's FLOPs per image at the average text of `captions` (B lists)."""
        texts = [caption for own in captions for caption in own]
        average = None
        if self._text is not None:
            different = list(set(texts))
            average = Captions(
                count=len(texts) / len(captions),
                words=sum(self._text.count_words(different)) / max(len(different), 1),
                distinct=len(different) / max(len(texts), 1),
            )
        with torch.device("meta"):  # the run's own model may be sharded or wrapped
            model = make_model(self._config, self._text)
        if isinstance(model, TCJEPA):
            return flops_per_image(model, self._config.masks, average).model
        return baseline_flops(model, average)

    def measure(self, images_per_s: float) -> dict[str, float]:
        """Return the MFU at a speed [images/s of all ranks], if it can be told yet."""
        if self._peak is None or self._flops is None:
            return {}
        return {"mfu": images_per_s * self._flops / self._peak}


__all__ = ["Utilisation"]
