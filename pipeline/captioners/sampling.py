"""Sampling in which each image draws for itself, whatever else is in its batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class RowSampler:
    """Logits processor that turns greedy `generate` into sampling with a seed per row.

    `generate(do_sample=True)` draws all rows from one stream, so that an answer depends on the
    other images of its batch, and changes when memory runs out and the batch is halved. Here row b
    takes its next number u in [0, 1) from its own stream, and the token at which the cumulative
    distribution passes u is left as the only one possible. Temperature and nucleus (top-p, Holtzman
    et al. 2020) are as in `transformers`; there is no hidden top-k.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._draws = [random.Random(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, vocabulary) in which each row's draw is the only finite one."""
        import torch

        # 64 bits, as sums on a GPU are rounded in no fixed order; Apple's GPUs have 32 only.
        wide = torch.float32 if scores.device.type == "mps" else torch.float64
        shares = torch.softmax(scores.to(wide) / self._temperature, dim=-1)
        if self._top_p < 1:
            shares = _nucleus(shares, self._top_p)
        sums = shares.cumsum(dim=-1)
        draws = [min(draw.random(), 1 - 1e-6) for draw in self._draws]
        heights = torch.tensor(draws, dtype=wide, device=scores.device)[:, None] * sums[:, -1:]
        chosen = torch.searchsorted(sums, heights, right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Return the shares with all but the fewest that sum to `top_p` set to 0, (B, vocabulary)."""
    ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return shares.scatter(1, order, ordered.masked_fill(before >= top_p, 0.0))
