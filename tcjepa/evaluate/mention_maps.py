"""Maps of the words that name known objects, read in eight ways (`READINGS`).

A map can be of patches as targets, whose content the predictor guesses, or as context, which the
encoder sees; of cosines, or of the word's share of attention; of the last conditioned layer, or of
the mean of all.

Shapes: W mentions, K pieces of them, R readings, P patches, Q predictor tokens; the others as in
docs/architecture.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcjepa.evaluate.captioned import CaptionedImages
from tcjepa.evaluate.features import Prepare, frozen
from tcjepa.evaluate.mentions import Mention
from tcjepa.model.jepa import TCJEPA, normalise
from tcjepa.text import TextEncoder
from tcjepa.watch.attention import Role, Tile, tiles_of

Floats = NDArray[np.float32]

_ROLES: Final[tuple[Role, ...]] = ("target", "context")
_VALUES: Final = ("cosine", "attention")
_LAYERS: Final = ("mean of layers", "last layer")
#: Names of the ways to read a map, in the order of R. Of equally good ones the first is reported.
READINGS: Final = tuple(map(", ".join, itertools.product(_ROLES, _VALUES, _LAYERS)))


@torch.no_grad()
def mention_maps(
    model: TCJEPA,
    text: TextEncoder,
    test: CaptionedImages,
    mentions: Sequence[Mention],
    device: torch.device,
    *,
    batch: int,
    prepare: Prepare = normalise,
) -> Floats:
    """Return the maps (W, R, P) of mentions, which must be in the order of images.

    A name of several pieces has the mean of their cosines and the sum of their attention. Captions
    of an image are shown together, as in training; `tiles_of` says how every patch gets both roles.
    """
    patches = model.encoder.shape.patches
    maps = np.zeros((len(mentions), len(READINGS), patches), np.float32)
    of_image = itertools.groupby(range(len(mentions)), lambda number: mentions[number].image)
    grouped = [(image, list(own)) for image, own in of_image]
    with frozen(model):
        for start in range(0, len(grouped), batch):
            part = grouped[start : start + batch]
            rows = [image for image, _ in part]
            words = [number for _, own in part for number in own]
            where, share = _pieces([mentions[number] for number in words], rows)
            where, share = where.to(device), share.to(device)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                images = prepare(test.images[rows].to(device))
                captions = text.encode(test.texts(rows), device)
                total = torch.zeros(len(words), len(READINGS), patches, device=device)
                times = torch.zeros(len(READINGS), patches, device=device)
                for tile in tiles_of(model, images, captions):
                    _add(total, times, tile, where, share)
            maps[words] = (total / times).cpu().numpy()
    return maps


def _pieces(mentions: Sequence[Mention], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return where the K pieces of a batch's mentions are, and 1 / how many their mention has.

    The former (4, K) int64: along B, N and S, and the number of the mention; the latter (K, 1).
    """
    row = {image: number for number, image in enumerate(rows)}
    columns = [
        (row[mention.image], mention.caption, piece, number)
        for number, mention in enumerate(mentions)
        for piece in mention.pieces
    ]
    shares = [1 / len(mention.pieces) for mention in mentions for _ in mention.pieces]
    return torch.tensor(columns).T, torch.tensor(shares).unsqueeze(1)


def _add(total: Tensor, times: Tensor, tile: Tile, where: Tensor, share: Tensor) -> None:
    """Add a tile's similarities to `total` (W, R, P), and to `times` (R, P) who has got one."""
    image, caption, piece, mention = where
    cosines = [layer.cosine[image, caption, piece].float() * share for layer in tile.layers]
    weights = [layer.weights[image, caption, piece].float() for layer in tile.layers]
    reading = 0
    for tokens in _ROLES:
        patches, part = tile.role(tokens)
        for each in (cosines, weights):  # (K, Q) per layer
            for own in (torch.stack(each).mean(0), each[-1]):
                of_word = total.new_zeros(len(total), len(patches))
                of_word.index_add_(0, mention, own[:, part])
                total[:, reading, patches] += of_word
                times[reading, patches] += 1
                reading += 1


__all__ = ["READINGS", "mention_maps"]
