"""The predictor's residual block: a ViT block that knows the layout and can be modulated."""

from __future__ import annotations

from functools import partial
from typing import cast

from timm.layers import Mlp
from torch import Tensor, nn

from tcjepa.model.layout import Layout

layer_norm = partial(nn.LayerNorm, eps=1e-6)


class PredictorAttention(nn.Module):
    """Multi-head self-attention among the tokens that a `Layout` lets see each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BQE: Tensor, layout: Layout) -> Tensor:
        """Return mixed tokens (B, Q, E)."""
        qkv = self.qkv(x_BQE).view(*x_BQE.shape[:2], 3, self.heads, -1)
        return cast(Tensor, self.proj(layout.attend(qkv)))


class PredictorBlock(nn.Module):
    """x <- x + attention(norm(x)); x <- x + MLP(norm(x)), weights named as in timm's `Block`.

    With a modulation (B, 6E) of shifts, scales and gates, both LayerNorms' outputs become
    (1 + scale) * norm(x) + shift and both branches are multiplied by 1 + gate. That is DiT's adaLN
    (arXiv 2212.09748) but for the ones before scale *and* gate, with which a modulation of zero is
    I-JEPA's block rather than the identity.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = PredictorAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x_BQE: Tensor, layout: Layout, modulation: Tensor | None = None) -> Tensor:
        """Return tokens (B, Q, E) of tokens (B, Q, E)."""
        if modulation is None:
            x_BQE = x_BQE + self.attn(self.norm1(x_BQE), layout)
            return x_BQE + cast(Tensor, self.mlp(self.norm2(x_BQE)))
        shift, scale, gate, shift2, scale2, gate2 = modulation.unsqueeze(1).chunk(6, dim=2)
        mixed = self.attn(self.norm1(x_BQE) * (1 + scale) + shift, layout)
        x_BQE = x_BQE + (1 + gate) * mixed
        seen = self.norm2(x_BQE) * (1 + scale2) + shift2
        return x_BQE + (1 + gate2) * cast(Tensor, self.mlp(seen))


__all__ = ["PredictorAttention", "PredictorBlock", "layer_norm"]
