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
from tcjepa.text import TextBatch

#: Rows and columns of tiles; a tile of 1/4 lies near I-JEPA's target blocks of 0.15-0.2.
TILES = (2, 2)


@dataclass(frozen=True)
class WordMaps:
    """How alike patches and words are; 0 at padding and at captions that an image lacks."""

    cosine: Tensor  # (B, N, S, P) float32, cos(q, K) of patch and word, in [-1, 1]
    weights: Tensor  # (B, N, S, P) float32, the word's share of the patch's attention
    valid: Tensor  # (B, N, S) bool, True at words of captions that exist
    grid: tuple[int, int]  # rows and columns of the P patches, in raster order


@torch.no_grad()
def word_maps(
    model: TCJEPA,
    images: Tensor,
    text: TextBatch,
    *,
    tokens: Literal["context", "target"] = "context",
    layer: int | None = None,
    tiles: tuple[int, int] = TILES,
) -> WordMaps:
    """Return the patch-word maps of normalised images (B, 3, H, W) and their captions.

    `tokens` says in which role a patch is looked at: as one that the encoder sees, or as one that
    the predictor fills in. `layer` counts conditioned layers, -1 being the last; None takes the
    mean of all. The model's mode is restored and nothing random is drawn. Raises `ValueError` if
    the predictor does not attend to words, or if the grid has fewer rows or columns than `tiles`.
    """
    grid = model.encoder.shape.grid
    total: list[Tensor] = []
    times = torch.zeros(grid[0] * grid[1], device=images.device)
    valid: Tensor | None = None
    with _evaluating(model):
        for inside, outside in _tilings(grid, tiles, images.device):
            B = len(images)
            masks = Masks(outside.expand(B, -1), inside.expand(B, 1, -1))
            features_BCD = model.encoder(images, masks.context)
            _, attentions, words = model.predictor(features_BCD, masks, text)
            if words is None or not attentions:
                raise ValueError("word maps need a predictor that attends to the words of captions")
            chosen = attentions if layer is None else [attentions[layer]]
            valid = words.valid & words.real.unsqueeze(-1)
            patches = outside if tokens == "context" else inside
            C = len(outside)  # with one target block, tokens are the context and then the target
            part = slice(0, C) if tokens == "context" else slice(C, None)
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


__all__ = ["TILES", "WordMaps", "word_maps"]
