"""Crops that the training device resizes: the loader carries them as decoded, in a square of room.

It saves the loader's processes the resizing, and carries more bytes to the device instead. Off by
default: it can pay where loading is what training waits for. What the loader gains,
`python -m tcjepa bench loader` says; what it costs a GPU has not been measured yet.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.data.augment import EVALUATION_MARGIN
from tcjepa.data.config import DataConfig


def carried_side(config: DataConfig) -> int:
    """Return the side of the square that an image of a batch lies in [px]."""
    if config.resize == "loader":
        return config.image_size
    return config.crop_room or round(config.image_size * EVALUATION_MARGIN)


def resize_crops(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Return crops (B, 3, size, size) uint8 of the top left corners of images (B, 3, R, R) uint8.

    `crops` (B, 2) holds their heights and widths [px]. Bilinear, as OpenCV's `INTER_LINEAR`, from
    which it differs by one level at most; so crops must not be shrunk to less than a half.
    """
    room = images.shape[-1]
    at = torch.arange(size, device=images.device) + 0.5
    sides = crops.to(torch.float32).unsqueeze(-1)
    centres = torch.minimum((sides * at / size - 0.5).clamp(min=0), sides - 1)
    y, x = ((2 * centres + 1) / room - 1).unbind(1)  # what `grid_sample` calls places, (B, size)
    shape = (-1, size, size)
    places = torch.stack([x.unsqueeze(1).expand(shape), y.unsqueeze(2).expand(shape)], dim=-1)
    found = functional.grid_sample(
        images.float(), places, padding_mode="border", align_corners=False
    )
    return found.round().to(torch.uint8)


__all__ = ["carried_side", "resize_crops"]
