"""Features of several crops of each image: what LiDAR compares.

Shapes: n images, q crops of each, H pixels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcjepa import keyed
from tcjepa.data.augment import random_box
from tcjepa.evaluate.features import Batches, Prepare, frozen

#: Crops of an image; and their size and aspect, which are those that the encoder is trained on.
VIEWS: Final = 10
_SCALE, _RATIO = (0.3, 1.0), (3 / 4, 4 / 3)
_DRAWS: Final = (10, 4)


@dataclass
class FirstImages:
    """Batches passed through, of which the first `most` images are kept."""

    batches: Batches
    most: int
    kept: list[Tensor] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        """Yield the batches; keeps images of the newest pass only."""
        self.kept = []
        for images, records in self.batches:
            room = self.most - sum(map(len, self.kept))
            if room > 0:
                self.kept.append(images[:room].clone())
            yield images, records


def view_features(
    encoder: nn.Module, images: Tensor, device: torch.device, prepare: Prepare, batch: int
) -> Tensor:
    """Return pooled features (n, VIEWS, D), float32 on the CPU, of random crops of (n, 3, H, H).

    Crops are a pure function of the image's place, so two encoders see the same ones.
    """
    crops = torch.stack(
        [_crop(image, number, view) for number, image in enumerate(images) for view in range(VIEWS)]
    )
    pooled = []
    with frozen(encoder):
        for part in torch.split(crops, batch):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                tokens = encoder(prepare(part.to(device)))
            pooled.append(tokens.float().mean(dim=1).cpu())
    return torch.cat(pooled).view(len(images), VIEWS, -1)


def _crop(image: Tensor, number: int, view: int) -> Tensor:
    draws = keyed.uniform(keyed.key("view", number, view), math.prod(_DRAWS)).reshape(_DRAWS)
    box = random_box(image.shape[1], image.shape[2], _SCALE, _RATIO, draws)
    cut = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    resized = functional.interpolate(
        cut[None].float(), size=image.shape[1:], mode="bilinear", antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)


__all__ = ["VIEWS", "FirstImages", "view_features"]
