"""Maps of which patch is similar to which word of a caption.

In training a predictor sees a few blocks of an image. To say something of every patch, the grid is
tiled: each tile is the target once, with all other patches as its context, as in training. So each
patch has one map as a target, of what the predictor takes for hidden there, and one as context, of
what it sees there (the mean over the tiles that it was not in).

Letters as in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tcjepa.masks import Masks
from tcjepa.model.conditioner import WordAttention
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.words import Words
from tcjepa.text import TextBatch

#: Rows and columns of tiles; a tile of 1/4 lies near I-JEPA's target blocks of 0.15-0.2.
TILES = (2, 2)
Role = Literal["context", "target"]


@dataclass(frozen=True)
class WordMaps:
    """How alike patches and words are; 0 at padding and at captions that an image lacks."""

    cosine: Tensor  # (B, N, S, P) float32, cos(q, K) of patch and word, in [-1, 1]
    weights: Tensor  # (B, N, S, P) float32, the word's share of the patch's attention
    valid: Tensor  # (B, N, S) bool, True at words of captions that exist
    grid: tuple[int, int]  # rows and columns of the P patches, in raster order


@dataclass(frozen=True)
class Tile:
    """What word attention looks like while one tile is the target and all else the context."""

    inside: Tensor  # (T,) int64, patches of the tile, raster order
    outside: Tensor  # (C,) int64, all others
    layers: list[WordAttention]  # of the conditioned layers, over C + T tokens
    words: Words

    def role(self, tokens: Role) -> tuple[Tensor, slice]:
        """Return the patches that are looked at in a role, and where they are along Q."""
        # With one target block, tokens are the context and then the target.
        C = len(self.outside)
        if tokens == "context":
            return self.outside, slice(0, C)
        return self.inside, slice(C, None)


@torch.no_grad()
def tiles_of(
    model: TCJEPA, images: Tensor, text: TextBatch, tiles: tuple[int, int] = TILES
) -> Iterator[Tile]:
    """Yield each tile's attention of normalised images (B, 3, H, W) and their captions.

    The model must be in evaluation mode. Raises `ValueError` if the predictor does not attend to
    words, or if the grid has fewer rows or columns than `tiles`.
    """
    B = len(images)
    for inside, outside in _tilings(model.encoder.shape.grid, tiles, images.device):
        masks = Masks(outside.expand(B, -1), inside.expand(B, 1, -1))
        features_BCD = model.encoder(images, masks.context)
        _, attentions, words = model.predictor(features_BCD, masks, text)
        if words is None or not attentions:
            raise ValueError("word maps need a predictor that attends to the words of captions")
        yield Tile(inside, outside, attentions, words)


@torch.no_grad()
def word_maps(
    model: TCJEPA,
    images: Tensor,
    text: TextBatch,
    *,
    tokens: Role = "context",
    layer: int | None = None,
    tiles: tuple[int, int] = TILES,
) -> WordMaps:
    """Return the patch-word maps of normalised images (B, 3, H, W) and their captions.

    `tokens` says in which role a patch is looked at: as one that the encoder sees, or as one that
    the predictor fills in. `layer` counts conditioned layers, -1 being the last; None takes the
    mean of all. The model's mode is restored and nothing random is drawn. Raises `ValueError` as
    `tiles_of` does.
    """
    grid = model.encoder.shape.grid
    total: list[Tensor] = []
    times = torch.zeros(grid[0] * grid[1], device=images.device)
    valid: Tensor | None = None
    with _evaluating(model):
        for tile in tiles_of(model, images, text, tiles):
            chosen = tile.layers if layer is None else [tile.layers[layer]]
            valid = tile.words.valid & tile.words.real.unsqueeze(-1)
            patches, part = tile.role(tokens)
            for total_BNSP, own in zip(
                total or _zeros(total, chosen[0], len(times)), _mean(chosen, part), strict=True
            ):
                total_BNSP.index_add_(3, patches, own)
            times[patches] += 1
    assert valid is not None
    cosine, weights = (each / times * valid.unsqueeze(-1) for each in total)
    return WordMaps(cosine, weights, valid, grid)


def _zeros(total: list[Tensor], like: WordAttention, patches: int) -> list[Tensor]:
    B, N, S, _ = like.cosine.shape
    total += [like.cosine.new_zeros(B, N, S, patches, dtype=torch.float32) for _ in range(2)]
    return total


def _mean(attentions: list[WordAttention], part: slice) -> tuple[Tensor, Tensor]:
    """Return cosines and weights (B, N, S, patches of the part), averaged over layers."""
    cosines = torch.stack([each.cosine[..., part].float() for each in attentions])
    weights = torch.stack([each.weights[..., part].float() for each in attentions])
    return cosines.mean(0), weights.mean(0)


def _tilings(
    grid: tuple[int, int], tiles: tuple[int, int], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield patch numbers (inside, outside) of each tile, both in raster order."""
    if tiles[0] > grid[0] or tiles[1] > grid[1] or tiles[0] * tiles[1] < 2:
        raise ValueError(f"{tiles} tiles do not divide a grid of {grid} patches")
    number = torch.arange(grid[0] * grid[1], device=device).view(grid)
    for rows in number.tensor_split(tiles[0], dim=0):
        for tile in rows.tensor_split(tiles[1], dim=1):
            inside = tile.flatten()
            yield inside, number.flatten()[~torch.isin(number.flatten(), inside)]


@contextmanager
def _evaluating(model: TCJEPA) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


__all__ = ["TILES", "Role", "Tile", "WordMaps", "tiles_of", "word_maps"]
