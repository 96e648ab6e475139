"""Text conditioning of patch features by word-level attention (TC-JEPA, Eq. 2).

Every caption of an image is attended to on its own; captions are pooled afterwards. All words of
all captions of an image share one matrix product per layer, and the cosines that the regularizers
need are that same product divided by the two norms, so no (patches, words, width) tensor exists.

Letters as in docs/architecture.md, and Q: all predictor tokens of an image (M blocks of C + T).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tcjepa.model.config import TextConditioning


@dataclass(frozen=True)
class Words:
    """The captions of a batch, with a null token for images that have none."""

    words: Tensor  # (U, S, F) word embeddings of the distinct captions
    null: Tensor  # (F,) the learned null token: the one word of the null caption, number U
    index: Tensor  # (B, N) int64 up to U; absent captions repeat a present one of the image
    present: Tensor  # (B, N) bool: captions to attend to, the null caption among them
    real: Tensor  # (B, N) bool: captions given by the data, which the regularizers cover
    valid: Tensor  # (B, N, S) bool, False at padding


@dataclass(frozen=True)
class WordAttention:
    """What one layer's attention looked like; losses and monitors read it."""

    cosine: Tensor  # (B, N, S, Q) float32, of patch and word, mean over heads; padding unmasked
    weights: Tensor  # (B, N, S, Q) float32, softmax over words, detached, mean over heads


class Conditioner(nn.Module):
    """q <- LayerNorm(z + MLP(z)), z = q + pool_n sum_s softmax(q K_s) V_s (Eq. 2).

    The paper's words are "a two-layer MLP and LayerNorm"; the residual around the MLP is ours, as
    in a transformer's feed-forward layer: without it, each of 6 to 12 layers would have to carry
    the features through a freshly initialised MLP.
    """

    def __init__(self, width: int, text_width: int, config: TextConditioning) -> None:
        super().__init__()
        self.heads = config.heads
        self.fusion = config.fusion
        self.fuse = config.fuse
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(text_width, width, bias=False)
        self.value = nn.Linear(text_width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def initialise_attention(self) -> None:
        """Draw W_Q and W_K with variance 1 / inputs; W_V keeps I-JEPA's std of 0.02.

        The paper gives no initialisation. With 0.02 everywhere attention stays even for long in a
        narrow predictor. With 1 / inputs for W_V too, the words drown what the context encoder
        says, layer by layer, and it learns less: docs/results.md, "How loud the words start".
        """
        for linear in (self.query, self.key):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, x_BQE: Tensor, words: Words) -> tuple[Tensor, WordAttention]:
        """Return conditioned features (B, Q, E) and the attention that made them."""
        query_BQE = self.query(x_BQE)
        added_BNQE, attention = self._attend(query_BQE, words)
        if self.fuse == "before_mlp":
            pooled_BQE = self._pool(added_BNQE, query_BQE, words.present)
            return self._finish(x_BQE + pooled_BQE), attention
        each_BNQE = self._finish(x_BQE.unsqueeze(1) + added_BNQE)
        return self._pool(each_BNQE, query_BQE, words.present), attention

    def _attend(self, query_BQE: Tensor, words: Words) -> tuple[Tensor, WordAttention]:
        """Return sum_s softmax(q K_s / sqrt(d)) V_s per caption (B, N, Q, E), and the attention."""
        B, N, S = words.valid.shape
        Q, E = query_BQE.shape[1:]
        h, d = self.heads, query_BQE.shape[2] // self.heads
        # Projected once per distinct caption, gathered per image: never once per target block.
        flat = words.index.flatten()
        key_BhWd = _split(_project(self.key, words).index_select(0, flat).view(B, N * S, E), h)
        value = _project(self.value, words).index_select(0, flat)
        query_BhdQ = _split(query_BQE, h).transpose(2, 3)

        dots = torch.matmul(key_BhWd, query_BhdQ).float()  # (B, h, N*S, Q)
        padding = torch.zeros_like(words.valid, dtype=torch.float32)
        padding.masked_fill_(~words.valid, -torch.inf)
        logits = dots * d**-0.5 + padding.view(B, 1, N * S, 1)
        weights = logits.view(B, h, N, S, Q).softmax(dim=3)
        # (B*h*N, Q, S) @ (B*h*N, S, d): the transposed view costs nothing in a batched product.
        value_rows = value.view(B, N, S, h, d).permute(0, 3, 1, 2, 4).reshape(B * h * N, S, d)
        rows = weights.to(value.dtype).view(B * h * N, S, Q).transpose(1, 2)
        added = torch.bmm(rows, value_rows).view(B, h, N, Q, d)
        added_BNQE = added.permute(0, 2, 3, 1, 4).reshape(B, N, Q, E)

        norms = _inverse_norm(key_BhWd).unsqueeze(3) * _inverse_norm(query_BhdQ, 2).unsqueeze(2)
        cosines = (dots * norms).view(B, h, N, S, Q)
        return added_BNQE, WordAttention(
            cosines.squeeze(1) if h == 1 else cosines.mean(1),
            weights.detach().squeeze(1) if h == 1 else weights.detach().mean(1),
        )

    def _pool(self, each_BNQE: Tensor, query_BQE: Tensor, present_BN: Tensor) -> Tensor:
        """Pool over captions; absent ones never count. Every image has one present caption."""
        if self.fusion == "max":
            return each_BNQE.amax(dim=1)  # absent captions are copies of present ones
        if self.fusion == "mean":
            share = present_BN / present_BN.sum(1, keepdim=True)
            return torch.einsum("bnqe,bn->bqe", each_BNQE, share.to(each_BNQE.dtype))
        scale = query_BQE.shape[-1] ** -0.5
        scores_BNQ = (each_BNQE * query_BQE.unsqueeze(1)).sum(-1).float() * scale
        share = scores_BNQ.masked_fill(~present_BN.unsqueeze(2), -torch.inf).softmax(dim=1)
        return torch.einsum("bnqe,bnq->bqe", each_BNQE, share.to(each_BNQE.dtype))

    def _finish(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.norm(z + self.mlp(z)))


def _project(linear: nn.Linear, words: Words) -> Tensor:
    """Return projected words (U + 1, S, E), the null token's last.

    Words and null token apart: the words need no gradient, and so cost none.
    """
    projected_USE = linear(words.words)
    null_E = linear(words.null)
    return torch.cat([projected_USE, null_E.expand(1, projected_USE.shape[1], -1)])


def _split(x: Tensor, heads: int) -> Tensor:
    """Return (B, h, X, d) of (B, X, h*d)."""
    B, X, width = x.shape
    return x.view(B, X, heads, width // heads).transpose(1, 2)


def _inverse_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Return 1 / L2 norm over `dim`, float32, as `functional.normalize` bounds it."""
    norm: Tensor = torch.linalg.vector_norm(x.float(), dim=dim)
    return norm.clamp_min(1e-6).reciprocal()


__all__ = ["Conditioner", "WordAttention", "Words"]
