"""The narrow ViT that predicts target blocks from context features and text."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tcjepa.masks import Masks
from tcjepa.model.conditioner import Conditioner, WordAttention, Words
from tcjepa.model.config import ModelConfig
from tcjepa.model.encoder import (
    INIT_STD,
    EncoderShape,
    gather_patches,
    initialise,
    sincos_positions,
)
from tcjepa.text import TextBatch

_norm = partial(nn.LayerNorm, eps=1e-6)


class Predictor(nn.Module):
    """Predicts each target block on its own, from the context and its mask tokens (I-JEPA).

    Each layer is a ViT block followed, if the model is text-conditioned, by a `Conditioner` whose
    output the next layer reads (TC-JEPA, Sec. 3). Behind the block rather than in front of it, a
    mask token has looked at the context before it queries the words, and the last conditioner's
    output is what is projected to the prediction.
    """

    positions: Tensor  # (P, E)

    def __init__(self, config: ModelConfig, encoder: EncoderShape, text_width: int | None) -> None:
        super().__init__()
        width = config.predictor_width
        heads = config.predictor_heads or encoder.heads
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=_norm)
            for _ in range(config.predictor_depth)
        )
        self.norm = _norm(width)
        self.project = nn.Linear(width, encoder.width)
        self.conditioners = nn.ModuleList()
        self.null_caption: nn.Parameter | None = None
        if config.text is not None:
            if text_width is None:
                raise ValueError("a text-conditioned predictor needs the text encoder's width")
            self.null_caption = nn.Parameter(torch.empty(text_width))
            self.conditioners.extend(
                Conditioner(width, text_width, config.text) for _ in range(config.predictor_depth)
            )
        initialise(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        if self.null_caption is not None:
            nn.init.trunc_normal_(self.null_caption, std=INIT_STD)

    def forward(
        self, context_BCD: Tensor, masks: Masks, text: TextBatch | None
    ) -> tuple[Tensor, list[WordAttention], Words | None]:
        """Return predictions (B, M, T, D), each layer's word attention, and the words attended.

        Attention lists Q = M * (C + T) tokens per image: block after block, context then target.
        Without conditioners the list is empty and `text` is not read.
        """
        B, C = masks.context.shape
        _, M, T = masks.targets.shape
        positions_BPE = self.positions.expand(B, -1, -1)
        x_BCE = self.embed(context_BCD) + gather_patches(positions_BPE, masks.context)
        queries_BMTE = self.mask_token + self.positions[masks.targets]
        x = torch.cat(
            [x_BCE.unsqueeze(1).expand(-1, M, -1, -1), queries_BMTE.to(x_BCE.dtype)], dim=2
        ).flatten(0, 1)  # (B*M, C+T, E)

        words = self._words(text, B) if self.null_caption is not None else None
        attentions = []
        for layer, block in enumerate(self.blocks):
            x = block(x)
            if words is not None:
                x_BQE, attention = self.conditioners[layer](x.view(B, M * (C + T), -1), words)
                x = x_BQE.view(B * M, C + T, -1)
                attentions.append(attention)
        x_BMTE = x.view(B, M, C + T, -1)[:, :, C:]
        return self.project(self.norm(x_BMTE)), attentions, words

    def _words(self, text: TextBatch | None, batch: int) -> Words:
        """Append the null caption and give it to images without a caption."""
        null = cast(nn.Parameter, self.null_caption)
        if text is None or text.words.numel() == 0 or text.caption.shape[1] == 0:
            nothing = torch.zeros(batch, 1, dtype=torch.int64, device=null.device)
            real = torch.zeros_like(nothing, dtype=torch.bool)
            return Words(null.view(1, 1, -1), nothing, ~real, real, (~real).unsqueeze(-1))
        U, S, _ = text.words.shape
        null_1SF = torch.cat([null.view(1, 1, -1), null.new_zeros(1, S - 1, null.shape[0])], dim=1)
        words_USF = torch.cat([text.words.to(null.dtype), null_1SF])
        first = torch.arange(S, device=null.device) == 0
        valid_US = torch.cat([text.valid, first.unsqueeze(0)])
        # A caption without a single word is no caption.
        real = (text.caption >= 0) & text.valid.any(1)[text.caption.clamp_min(0)]
        none = ~real.any(1)
        leading = torch.arange(real.shape[1], device=null.device) == 0
        use_null = none.unsqueeze(1) & leading
        index = text.caption.clamp_min(0).masked_fill(use_null, U)
        present = real | use_null
        return Words(words_USF, index, present, real, valid_US[index] & present.unsqueeze(-1))


__all__ = ["Predictor"]
