"""Multi-block masks: which patches an encoder sees, and which blocks a predictor must fill in.

Both samplers implement I-JEPA's masking (one large context block, M target blocks, the targets
removed from the context). `uniform` is the default; `reference` repeats the public code
(facebookresearch/ijepa, src/masks/multiblock.py), which cuts every context to the batch's minimum
in raster order, never covers the last row and column, and ties a block's scale to its aspect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from pipeline.settings import ConfigError, Settings
from tcjepa import keyed

#: Draws per image before targets are made to overlap; see `_draw`.
ATTEMPTS = 8
#: Share of draws that may fall short of the context count C, and are drawn again.
SHORT_SHARE = 0.1
_CALIBRATION_DRAWS = 4096


class MaskConfig(Settings):
    """Block sizes and the sampler (config section `masks`); defaults are I-JEPA's."""

    sampler: Literal["uniform", "reference"] = Field(
        "uniform",
        description="uniform: fixed token counts and uniform positions; reference: I-JEPA's public "
        "code with its batch-dependent context",
    )
    context_scale: tuple[float, float] = Field(
        (0.85, 1.0), description="context block; I-JEPA: 0.85-1.0 [share of the image]"
    )
    target_scale: tuple[float, float] = Field(
        (0.15, 0.2),
        description="a target block; I-JEPA: 0.15-0.2; `uniform` takes the mean [image share]",
    )
    target_aspect: tuple[float, float] = Field(
        (0.75, 1.5), description="a target block; I-JEPA: 0.75-1.5 [height / width]"
    )
    targets: int = Field(4, ge=1, description="target blocks per image; I-JEPA: 4 [blocks]")
    min_context: int = Field(
        10, ge=1, description="fewest context patches of an image; I-JEPA: 10 [patches]"
    )

    @field_validator("context_scale", "target_scale", "target_aspect")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"got {list(value)}, expected [low, high] with 0 < low <= high")
        return value

    @field_validator("context_scale", "target_scale")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError(f"got {list(value)}, a share of the image is at most 1")
        return value


@dataclass(frozen=True)
class Masks:
    """Context and target patches of a batch."""

    context: Tensor  # (B, C) int64 patch numbers, raster order of the grid
    targets: Tensor  # (B, M, T) int64

    def to(self, device: torch.device) -> Masks:
        """Return the masks on a device."""
        return Masks(
            self.context.to(device, non_blocking=True), self.targets.to(device, non_blocking=True)
        )


def sample_masks(
    config: MaskConfig,
    grid: tuple[int, int],
    batch: int,
    seed: int,
    step: int,
    *,
    rows: slice | None = None,
) -> Masks:
    """Return masks of `rows` (default: all) of a global batch, a pure function of (seed, step).

    `grid` is (rows, columns) of patches and `batch` the global batch, so a rank's slice is the same
    whatever the number of ranks. With `uniform`, image i's masks depend on (seed, step, i) alone
    and every call returns the same shapes. Raises `ConfigError` if the grid is too small for
    `masks.min_context` patches besides the targets.
    """
    if config.sampler == "reference":
        # Imported late: the reference is for comparison only.
        from tcjepa.masks_reference import sample_reference

        whole = sample_reference(config, grid, batch, seed, step)
        chosen = slice(None) if rows is None else rows
        return Masks(whole.context[chosen], whole.targets[chosen])
    sizes = token_counts(config, grid)
    P = grid[0] * grid[1]
    per_image = ATTEMPTS * _draws_per_attempt(config) + P
    numbers = keyed.uniform(keyed.key("masks", seed, step), batch * per_image)
    numbers = numbers.reshape(batch, per_image)[rows if rows is not None else slice(None)]
    attempts = numbers[:, :-P].reshape(len(numbers), ATTEMPTS, -1)
    available, targets = _draw(config, grid, attempts, sizes)
    return Masks(
        torch.from_numpy(_choose(available, numbers[:, -P:], sizes.context)),
        torch.from_numpy(targets),
    )


@dataclass(frozen=True)
class TokenCounts:
    """Tokens per image of the `uniform` sampler: C of the context, T of each target block."""

    context: int
    target: int


@lru_cache(maxsize=64)
def token_counts(config: MaskConfig, grid: tuple[int, int]) -> TokenCounts:
    """Return the fixed token counts of the `uniform` sampler on a grid.

    T is the mean target scale times the number of patches. C is the largest count that all but
    `SHORT_SHARE` of 4,096 seeded draws reach: a constant of (config, grid), never of a batch.
    Raises `ConfigError` as `sample_masks` does.
    """
    T = max(1, round(sum(config.target_scale) / 2 * grid[0] * grid[1]))
    per_attempt = _draws_per_attempt(config)
    numbers = keyed.uniform(keyed.key("mask calibration"), _CALIBRATION_DRAWS * per_attempt)
    free, _ = _blocks(config, grid, numbers.reshape(_CALIBRATION_DRAWS, per_attempt), T)
    C = int(np.sort(free.sum(1))[int(SHORT_SHARE * _CALIBRATION_DRAWS)])
    if config.min_context > C:
        raise ConfigError(
            f"masks.min_context: a {grid[0]}x{grid[1]} grid leaves {C} context patches beside "
            f"{config.targets} targets of {T}, fewer than {config.min_context}; use more patches "
            "(a smaller model.encoder_kwargs.patch_size or a larger image) or lower "
            "masks.min_context, masks.targets or masks.target_scale"
        )
    return TokenCounts(C, T)


def _draws_per_attempt(config: MaskConfig) -> int:
    """Return numbers per attempt: 3 for the context, 5 (aspect, row, column, 2 edges) a target."""
    return 3 + 5 * config.targets


def _draw(
    config: MaskConfig,
    grid: tuple[int, int],
    numbers: NDArray[np.float64],
    sizes: TokenCounts,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return free context cells (n, P) and targets (n, M, T) of draws `numbers` (n, ATTEMPTS, K).

    Only images short of C free cells are drawn again. After the last attempt (at a tenth short per
    attempt, one image in 10^8) all targets of the image become copies of its first one, and the
    context block the whole grid, which leaves P - T cells.
    """
    free, targets = _blocks(config, grid, numbers[:, 0], sizes.target)
    for attempt in range(1, ATTEMPTS):
        short = np.flatnonzero(free.sum(1) < sizes.context)
        if not len(short):
            return free, targets
        free[short], targets[short] = _blocks(config, grid, numbers[short, attempt], sizes.target)
    short = np.flatnonzero(free.sum(1) < sizes.context)
    targets[short] = targets[short, :1]
    free[short] = True
    free[short[:, None], targets[short, 0]] = False
    return free, targets


def _blocks(
    config: MaskConfig, grid: tuple[int, int], numbers: NDArray[np.float64], T: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return cells (n, P) of the context block outside the targets, and targets (n, M, T)."""
    H, W = grid
    n, M = len(numbers), config.targets
    low, high = config.context_scale
    # Aspect 1 relative to the grid, so that scale 1 is the whole image on any grid.
    side = np.sqrt(low + (high - low) * numbers[:, 0])
    height, width = np.rint(H * side).astype(int), np.rint(W * side).astype(int)
    top, left = _start(H - height, numbers[:, 1]), _start(W - width, numbers[:, 2])
    free = _inside(top, height, H)[:, :, None] & _inside(left, width, W)[:, None, :]

    u = numbers[:, 3:].reshape(n * M, 5).T
    low, high = config.target_aspect
    aspect = low + (high - low) * u[0]
    height = np.clip(np.rint(np.sqrt(T * aspect)).astype(int), math.ceil(T / W), min(H, T))
    width = -(-T // height)
    top, left = _start(H - height, u[1]), _start(W - width, u[2])
    # The smallest such rectangle has up to height - 1 cells too many: they leave the first or last
    # column, from its top or bottom.
    surplus = height * width - T
    column = np.where(u[3] < 0.5, left, left + width - 1)
    cut_top = np.where(u[4] < 0.5, top, top + height - surplus)
    cells = _inside(top, height, H)[:, :, None] & _inside(left, width, W)[:, None, :]
    cut = _inside(cut_top, surplus, H)[:, :, None] & _inside(column, 1, W)[:, None, :]
    cells = (cells & ~cut).reshape(n, M, H * W)
    targets = (np.flatnonzero(cells) % (H * W)).reshape(n, M, T)
    return free.reshape(n, H * W) & ~cells.any(1), targets


def _start(room: NDArray[np.int64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return uniform starts in 0..room, both ends included."""
    return np.floor(u * (room + 1)).astype(np.int64)


def _inside(
    start: NDArray[np.int64], length: NDArray[np.int64] | int, size: int
) -> NDArray[np.bool_]:
    """Return (n, size) bool, True in [start, start + length)."""
    axis = np.arange(size)
    return np.asarray((axis >= start[:, None]) & (axis < (start + length)[:, None]))


def _choose(free: NDArray[np.bool_], numbers: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return `count` cells (n, count) drawn from the free ones (n, P), in raster order."""
    order = np.where(free, numbers, 2.0)
    if count == free.shape[1]:
        return np.argsort(order, axis=1)
    return np.sort(np.argpartition(order, count - 1, axis=1)[:, :count], axis=1)


__all__ = ["MaskConfig", "Masks", "TokenCounts", "sample_masks", "token_counts"]
