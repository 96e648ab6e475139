"""How the predictor's tokens are arranged, and which of them see each other.

Letters as in docs/architecture.md, and P: tokens before a target block (the context, behind it the
words where `conditioning: sequence` appends them); Q: all predictor tokens of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Layout:
    """The tokens of an image: a prefix of P tokens and M target blocks of T.

    As published (I-JEPA), each block has its own copy of the prefix and the P + T tokens see one
    another: Q = M * (P + T), block after block, prefix first. With `shared`, the prefix is there
    once and sees itself only; a block's tokens see the prefix and their own block: Q = P + M * T.
    """

    prefix: int  # P
    blocks: int  # M
    target: int  # T
    shared: bool
    visible: Tensor | None = None  # (B, P) bool, prefix tokens that may be attended; None: all

    def join(self, prefix_BPE: Tensor, targets_BMTE: Tensor) -> Tensor:
        """Return the tokens (B, Q, E) in the layout's order."""
        if self.shared:
            return torch.cat([prefix_BPE, targets_BMTE.flatten(1, 2)], dim=1)
        copies = prefix_BPE.unsqueeze(1).expand(-1, self.blocks, -1, -1)
        return torch.cat([copies, targets_BMTE], dim=2).flatten(1, 2)

    def targets(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return the M * T target tokens of `x`, which has the Q tokens along `dim`."""
        if self.shared:
            return x.narrow(dim, self.prefix, self.blocks * self.target)
        shape = (self.blocks, self.prefix + self.target)
        blocks = x.reshape(*x.shape[:dim], *shape, *x.shape[dim + 1 :])
        return blocks.narrow(dim + 1, self.prefix, self.target).flatten(dim, dim + 1)

    def attend(self, qkv_BQ3hd: Tensor) -> Tensor:
        """Return scaled dot-product attention (B, Q, h*d) among the tokens that see each other."""
        B, Q, _, h, d = qkv_BQ3hd.shape
        if not self.shared:
            own = qkv_BQ3hd.reshape(B * self.blocks, self.prefix + self.target, 3, h, d)
            query, key, value = own.permute(2, 0, 3, 1, 4)
            return _attend(query, key, value, self._mask(own=True)).reshape(B, Q, h * d)
        prefix, targets = qkv_BQ3hd[:, : self.prefix], qkv_BQ3hd[:, self.prefix :]
        query, key, value = prefix.permute(2, 0, 3, 1, 4)
        seen = _attend(query, key, value, self._mask(own=False))
        # The prefix's keys and values of this very layer serve all blocks: no FLOP is spent twice.
        own = targets.reshape(B, self.blocks, self.target, 3, h, d)
        copies = prefix[:, None, :, 1:].expand(-1, self.blocks, -1, -1, -1, -1)
        key, value = torch.cat([copies, own[:, :, :, 1:]], 2).flatten(0, 1).permute(2, 0, 3, 1, 4)
        query = own[:, :, :, 0].flatten(0, 1).transpose(1, 2)
        blocks = _attend(query, key, value, self._mask(own=True)).reshape(B, -1, h * d)
        return torch.cat([seen, blocks], dim=1)

    def _mask(self, own: bool) -> Tensor | None:
        """Return what keys are seen: (B*M, 1, 1, P+T) with the `own` block, else (B, 1, 1, P)."""
        if self.visible is None:
            return None
        if not own:
            return self.visible[:, None, None]
        seen = functional.pad(self.visible, (0, self.target), value=True)
        return seen.repeat_interleave(self.blocks, dim=0)[:, None, None]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention (B, X, h*d) of heads (B, h, X, d) over (B, h, Y, d)."""
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


__all__ = ["Layout"]
