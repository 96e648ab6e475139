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
        width = config.predictor.width
        heads = config.predictor.heads or encoder.heads
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True, norm_layer=_norm)
            for _ in range(config.predictor.depth)
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
                Conditioner(width, text_width, config.text) for _ in range(config.predictor.depth)
            )
        initialise(self, self.blocks)
        for conditioner in self.conditioners:
            cast(Conditioner, conditioner).initialise_attention()
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
        x_BCE = self.embed(context_BCD) + self.positions[masks.context]
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
        null_F = cast(nn.Parameter, self.null_caption)
        if text is None or text.caption.shape[1] == 0:
            text = _no_text(batch, null_F)
        U, S, _ = text.words.shape
        first = torch.arange(S, device=null_F.device) == 0
        valid_US = torch.cat([text.valid, first.unsqueeze(0)])
        own_BN = text.caption.masked_fill(text.caption < 0, U)
        # A caption without a single word is no caption.
        real_BN = (text.caption >= 0) & valid_US.any(1)[own_BN]
        # Absent captions repeat the image's first real one, which leaves a maximum as it is and
        # spares a masked copy of (B, N, Q, E); images without any get the null caption throughout.
        stand_in_B1 = own_BN.gather(1, real_BN.int().argmax(1, keepdim=True))
        stand_in_B1 = stand_in_B1.masked_fill(~real_BN.any(1, keepdim=True), U)
        index_BN = torch.where(real_BN, own_BN, stand_in_B1)
        leading = torch.arange(real_BN.shape[1], device=null_F.device) == 0
        present_BN = real_BN | (~real_BN.any(1, keepdim=True) & leading)
        words_USF = text.words.to(null_F.dtype)
        return Words(words_USF, null_F, index_BN, present_BN, real_BN, valid_US[index_BN])


def _no_text(batch: int, null_F: Tensor) -> TextBatch:
    return TextBatch(
        words=null_F.new_zeros(0, 1, null_F.shape[0]),
        valid=torch.zeros(0, 1, dtype=torch.bool, device=null_F.device),
        caption=torch.full((batch, 1), -1, dtype=torch.int64, device=null_F.device),
    )


__all__ = ["Predictor"]
