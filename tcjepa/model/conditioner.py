"""Text conditioning of patch features by word-level attention (TC-JEPA, Eq. 2), and by AdaLN.

Every caption of an image is attended to on its own; captions are pooled afterwards. All words of
all captions of an image share one matrix product per layer, and the cosines that the regularizers
need are that same product divided by the two norms, so no (patches, words, width) tensor exists.

Letters as in docs/architecture.md, and Q: all predictor tokens of an image (`Layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tcjepa.model.config import TextConditioning
from tcjepa.model.layout import Layout
from tcjepa.model.pooling import attend_max, pool
from tcjepa.model.precision import wide
from tcjepa.model.words import Words


@dataclass(frozen=True)
class WordAttention:
    """What one layer's attention looked like; losses and monitors read it. At least float32."""

    cosine: Tensor  # (B, N, S, Q), of patch and word, mean over heads; 0 at padding
    weights: Tensor  # (B, N, S, Q), softmax over words, detached, mean over heads; 0 at padding


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

    def initialise(self) -> None:
        """Draw W_Q and W_K with variance 1 / inputs; W_V keeps I-JEPA's std of 0.02.

        The paper gives no initialisation. With 0.02 everywhere attention stays even for long in a
        narrow predictor. With 1 / inputs for W_V too, the words drown what the context encoder
        says, layer by layer, and it learns less: docs/results.md, "How loud the words start".
        """
        for linear in (self.query, self.key):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(
        self, x_BQE: Tensor, words: Words, targets_of: Layout | None = None
    ) -> tuple[Tensor, WordAttention]:
        """Return conditioned features (B, Q, E) and the attention that made them.

        With a layout in `targets_of` only the features (B, M*T, E) of target tokens, which is all
        that is read behind the last layer; the attention is still of all Q tokens.
        """
        query_BQE = self.query(x_BQE)
        weights_BhNSQ, attention = self._attend(query_BQE, words)
        if targets_of is not None:
            x_BQE, query_BQE = targets_of.targets(x_BQE), targets_of.targets(query_BQE)
            weights_BhNSQ = targets_of.targets(weights_BhNSQ, dim=4)
        value_BhNSd = self._values(words).to(query_BQE.dtype)
        weights_BhNSQ = weights_BhNSQ.to(value_BhNSd.dtype)
        if self.fuse == "before_mlp" and self.fusion == "max":
            pooled = attend_max(weights_BhNSQ.flatten(0, 1), value_BhNSd.flatten(0, 1))
            by_head = pooled.view(-1, self.heads, *pooled.shape[1:])
            pooled_BQE = by_head.transpose(1, 2).flatten(2)
            return self._finish(x_BQE + pooled_BQE), attention
        added = torch.matmul(weights_BhNSQ.transpose(3, 4), value_BhNSd)  # (B, h, N, Q, d)
        added_BNQE = added.permute(0, 2, 3, 1, 4).flatten(3)
        if self.fuse == "before_mlp":
            pooled_BQE = pool(added_BNQE, query_BQE, words.present, self.fusion)
            return self._finish(x_BQE + pooled_BQE), attention
        each_BNQE = self._finish(x_BQE.unsqueeze(1) + added_BNQE)
        return pool(each_BNQE, query_BQE, words.present, self.fusion), attention

    def _attend(self, query_BQE: Tensor, words: Words) -> tuple[Tensor, WordAttention]:
        """Return softmax(q K_s / sqrt(d)) over each caption's words (B, h, N, S, Q); monitors."""
        B, N, S = words.valid.shape
        Q, h, d = query_BQE.shape[1], self.heads, query_BQE.shape[2] // self.heads
        unit_BhWd, length_BhW1 = self._keys(words)
        query_BhdQ = query_BQE.view(B, Q, h, d).permute(0, 2, 3, 1)
        # Keys have length 1, or 0 at padding: two products with norms give cosines and logits.
        dots_BhWQ = wide(torch.matmul(unit_BhWd, query_BhdQ))
        norm_Bh1Q = torch.linalg.vector_norm(wide(query_BhdQ), dim=2, keepdim=True)
        cosines = (dots_BhWQ / norm_Bh1Q.clamp_min(1e-6)).view(B, h, N, S, Q)
        padding = torch.zeros_like(words.valid, dtype=dots_BhWQ.dtype)
        padding = padding.masked_fill(~words.valid, -torch.inf).view(B, 1, N * S, 1)
        logits = torch.addcmul(padding, dots_BhWQ, length_BhW1, value=d**-0.5)
        weights = logits.view(B, h, N, S, Q).softmax(dim=3)
        # A view for one head, where a mean would be a copy.
        alone, shown = h == 1, weights.detach()
        return weights, WordAttention(
            cosines.squeeze(1) if alone else cosines.mean(1),
            shown.squeeze(1) if alone else shown.mean(1),
        )

    def _keys(self, words: Words) -> tuple[Tensor, Tensor]:
        """Return keys of length 1, 0 at padding (B, h, N*S, d), and their lengths (B, h, N*S, 1).

        Projected and measured once per distinct caption, gathered per image.
        """
        B, N, S = words.valid.shape
        key_USE = _project(self.key, words)
        key = wide(key_USE).view(*key_USE.shape[:2], self.heads, -1)
        length_USh = torch.linalg.vector_norm(key, dim=3).clamp_min(1e-6)
        scale = words.distinct_valid.unsqueeze(2) / length_USh
        unit_USE = (key * scale.unsqueeze(3)).flatten(2).to(key_USE.dtype)
        flat = words.index.flatten()
        unit = unit_USE.index_select(0, flat).view(B, N * S, self.heads, -1)
        length = length_USh.index_select(0, flat).view(B, N * S, self.heads, 1)
        return unit.transpose(1, 2), length.transpose(1, 2)

    def _values(self, words: Words) -> Tensor:
        """Return values (B, h, N, S, d)."""
        value_USE = _project(self.value, words)
        value = value_USE.index_select(0, words.index.flatten())
        return value.view(*words.valid.shape, self.heads, -1).permute(0, 3, 1, 2, 4)

    def _finish(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.norm(z + self.mlp(z)))


class Modulator(nn.Module):
    """Shifts, scales and gates of one predictor block from the captions (`conditioning: adaln`).

    A two-layer network with SiLU as in DiT (arXiv 2212.09748), from each caption's embedding; its
    outputs are pooled over captions as word attention's are. Ours: what TC-JEPA's Appendix A
    pools, and how, is not known to us.
    """

    def __init__(self, width: int, text_width: int, config: TextConditioning) -> None:
        super().__init__()
        self.fusion = config.fusion
        self.layers = nn.Sequential(
            nn.Linear(text_width, width), nn.SiLU(), nn.Linear(width, 6 * width)
        )

    def forward(self, captions_BNF: Tensor, present_BN: Tensor) -> Tensor:
        """Return the modulation (B, 6E) of a `PredictorBlock`."""
        each_BN1 = self.layers(captions_BNF).unsqueeze(2)
        return pool(each_BN1, None, present_BN, self.fusion).squeeze(1)


def _project(linear: nn.Linear, words: Words) -> Tensor:
    """Return projected words (U + 1, S, E), the null token's last.

    Words and null token apart: the words need no gradient, and so cost none.
    """
    projected_USE = linear(words.words)
    null_E = linear(words.null)
    return torch.cat([projected_USE, null_E.expand(1, projected_USE.shape[1], -1)])


__all__ = ["Conditioner", "Modulator", "WordAttention"]
