"""I-JEPA's public mask sampler, with its quirks, for comparison with published numbers.

After facebookresearch/ijepa, src/masks/multiblock.py. Its quirks: the context and target counts are
the batch's minima, cut in raster order; `randint(0, H - h)` never reaches the last row and column;
one random number sets both scale and aspect; block sizes are shared by the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.masks import MaskConfig, Masks

_TRIES = 20


def sample_reference(
    config: MaskConfig, grid: tuple[int, int], batch: int, seed: int, step: int
) -> Masks:
    """Return masks of a whole batch as I-JEPA's `MaskCollator` draws them.

    Two things differ: positions come from (seed, step) rather than from the process's random state,
    and the public code's demand that a target too has more than `min_context` patches is dropped
    (there, a smaller one loops forever). Raises `ConfigError` if no context can be large enough.
    """
    H, W = grid
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    share = float(torch.rand(1, generator=generator))
    target_size = _size(grid, share, config.target_scale, config.target_aspect)
    share = float(torch.rand(1, generator=generator))
    context_size = _size(grid, share, config.context_scale, (1.0, 1.0))
    if min(target_size) < 1 or context_size[0] * context_size[1] <= config.min_context:
        raise ConfigError(
            f"masks.min_context: a {H}x{W} grid is too small for the reference sampler; use more "
            "patches, or masks.sampler=uniform"
        )
    contexts, targets = [], []
    for _ in range(batch):
        blocks = [_place(grid, target_size, generator) for _ in range(config.targets)]
        contexts.append(_context(grid, context_size, blocks, config.min_context, generator))
        targets.append(torch.stack([block.flatten().nonzero()[:, 0] for block in blocks]))
    fewest = min(len(context) for context in contexts)
    return Masks(torch.stack([context[:fewest] for context in contexts]), torch.stack(targets))


def _size(
    grid: tuple[int, int], share: float, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int]:
    """Return a block's (height, width), always smaller than the grid."""
    keep = int(grid[0] * grid[1] * (scale[0] + share * (scale[1] - scale[0])))
    ratio = aspect[0] + share * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(keep * ratio)), round(math.sqrt(keep / ratio))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _place(grid: tuple[int, int], size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a (H, W) bool mask of a block of `size` at a random place."""
    top = int(torch.randint(0, grid[0] - size[0], (1,), generator=generator))
    left = int(torch.randint(0, grid[1] - size[1], (1,), generator=generator))
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[top : top + size[0], left : left + size[1]] = True
    return mask


def _context(
    grid: tuple[int, int],
    size: tuple[int, int],
    blocks: list[Tensor],
    min_context: int,
    generator: torch.Generator,
) -> Tensor:
    """Return context patches; after every 20 failures one target fewer is kept out of them."""
    avoided = len(blocks)
    while True:
        for _ in range(_TRIES):
            mask = _place(grid, size, generator)
            for block in blocks[:avoided]:
                mask &= ~block
            if int(mask.sum()) > min_context:
                return mask.flatten().nonzero()[:, 0]
        avoided -= 1


__all__ = ["sample_reference"]
