"""The narrow ViT that predicts target blocks from context features and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tcjepa.masks import Masks
from tcjepa.model.block import PredictorBlock, layer_norm
from tcjepa.model.conditioner import Conditioner, Modulator, WordAttention
from tcjepa.model.config import ModelConfig
from tcjepa.model.encoder import INIT_STD, EncoderShape, initialise, sincos_positions
from tcjepa.model.layout import Layout
from tcjepa.model.pooling import pool
from tcjepa.model.words import Words
from tcjepa.text import TextBatch


@dataclass(frozen=True)
class _Tokens:
    """The predictor's input, and the text that its layers read."""

    x: Tensor  # (B, Q, E)
    layout: Layout
    words: Words | None  # what conditioners attend to
    captions: Tensor | None  # (B, N, F), what modulators read


class Predictor(nn.Module):
    """Predicts each target block on its own, from the context and its mask tokens (I-JEPA).

    Where the text enters is `model.text.conditioning`, one of five, whose modules are all there is:

    - `word_attention` (TC-JEPA, Sec. 3): behind each block a `Conditioner`, whose output the next
      layer reads. Behind the block rather than in front of it, a mask token has looked at the
      context before it queries the words, and the last conditioner's output is what is projected.
    - `caption_attention`: the same conditioner attending to one vector per caption.
    - `adaln`: a `Modulator` per block scales and shifts its LayerNorms.
    - `feature`: a projection of the captions' embeddings is added to every input token.
    - `sequence`: the projected words of all captions are tokens among the context's.

    The paper compares the last four with the first; its Appendix A, which defines them, was not at
    hand, so their details are ours. A caption's embedding is the mean of its words.
    """

    positions: Tensor  # (P, E)

    def __init__(self, config: ModelConfig, encoder: EncoderShape, text_width: int | None) -> None:
        super().__init__()
        self.config, self.text = config.predictor, config.text
        width, depth = config.predictor.width, config.predictor.depth
        heads = config.predictor.heads or encoder.heads
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_positions(encoder.grid, width), persistent=False)
        self.blocks = nn.ModuleList(PredictorBlock(width, heads) for _ in range(depth))
        self.norm = layer_norm(width)
        self.project = nn.Linear(width, encoder.width)
        self.conditioners = nn.ModuleList()
        self.conditioned: tuple[int, ...] = ()  # the layers that `conditioners` belong to
        self.embed_text: nn.Linear | None = None
        self.null_caption: nn.Parameter | None = None
        if self.text is not None:
            if text_width is None:
                raise ValueError("a text-conditioned predictor needs the text encoder's width")
            self.null_caption = nn.Parameter(torch.empty(text_width))
            if self.text.conditioning in ("feature", "sequence"):
                self.embed_text = nn.Linear(text_width, width)
            else:
                self.conditioned = self.text.layer_numbers(depth)
                kind = Modulator if self.text.conditioning == "adaln" else Conditioner
                self.conditioners.extend(
                    kind(width, text_width, self.text) for _ in self.conditioned
                )
        initialise(self, self.blocks, config.init_std)
        for conditioner in self.conditioners:
            if isinstance(conditioner, Conditioner):
                conditioner.initialise()
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        if self.null_caption is not None:
            nn.init.trunc_normal_(self.null_caption, std=INIT_STD)

    def forward(
        self, context_BCD: Tensor, masks: Masks, text: TextBatch | None
    ) -> tuple[Tensor, list[WordAttention], Words | None]:
        """Return predictions (B, M, T, D), each layer's word attention, and the words attended.

        Attention is of the layers with word attention, in their order, and of the Q tokens in the
        order of `Layout`. For other conditionings, and without text, the list is empty and the
        words are None.
        """
        tokens = self._tokens(context_BCD, masks, text)
        x_BQE, layout = tokens.x, tokens.layout
        attentions: list[WordAttention] = []
        only_targets = False
        for layer, block in enumerate(self.blocks):
            conditioner = self._conditioner(layer)
            modulation = None
            if conditioner is not None and tokens.captions is not None:
                modulation = conditioner(tokens.captions, cast(Words, tokens.words).present)
            x_BQE = block(x_BQE, layout, modulation)
            if conditioner is not None and modulation is None:
                only_targets = layer == len(self.blocks) - 1
                last = layout if only_targets else None
                x_BQE, attention = conditioner(x_BQE, tokens.words, last)
                attentions.append(attention)
        if not only_targets:
            x_BQE = layout.targets(x_BQE)
        predicted = self.project(self.norm(x_BQE)).unflatten(1, (layout.blocks, layout.target))
        if self.text is None or self.text.conditioning != "word_attention":
            return predicted, [], None
        return predicted, attentions, tokens.words

    def _conditioner(self, layer: int) -> nn.Module | None:
        if layer not in self.conditioned:
            return None
        return self.conditioners[self.conditioned.index(layer)]

    def _tokens(self, context_BCD: Tensor, masks: Masks, text: TextBatch | None) -> _Tokens:
        """Return context and mask tokens with what the conditioning adds to them."""
        B, C = masks.context.shape
        _, M, T = masks.targets.shape
        context_BCE = self.embed(context_BCD) + self.positions[masks.context]
        queries_BMTE = (self.mask_token + self.positions[masks.targets]).to(context_BCE.dtype)
        layout = Layout(C, M, T, self.config.share_context)
        if self.text is None:
            return _Tokens(layout.join(context_BCE, queries_BMTE), layout, None, None)
        words = Words.of(text, cast(nn.Parameter, self.null_caption), B)
        captions_BNF, kind = None, self.text.conditioning
        if kind == "caption_attention":
            words = words.as_one_caption()
        elif kind == "adaln":
            captions_BNF = words.embeddings()
        elif kind == "feature":
            assert self.embed_text is not None
            each_BN1E = self.embed_text(words.embeddings()).unsqueeze(2)
            added_B1E = pool(each_BN1E, None, words.present, self.text.fusion)
            context_BCE = context_BCE + added_B1E
            queries_BMTE = queries_BMTE + added_B1E.unsqueeze(1)
        elif kind == "sequence":
            context_BCE, layout = self._append(context_BCE, words, layout)
        return _Tokens(layout.join(context_BCE, queries_BMTE), layout, words, captions_BNF)

    def _append(self, context_BCE: Tensor, words: Words, layout: Layout) -> tuple[Tensor, Layout]:
        """Return the context with every word of every caption behind it, padding out of sight."""
        assert self.embed_text is not None
        embedded = torch.cat(
            [
                self.embed_text(words.words),
                self.embed_text(words.null).expand(1, words.words.shape[1], -1),
            ]
        )
        words_BWE = embedded.index_select(0, words.index.flatten()).view(
            len(context_BCE), -1, embedded.shape[2]
        )
        seen_BW = (words.valid & words.present.unsqueeze(2)).flatten(1)
        seen_BC = seen_BW.new_ones(context_BCE.shape[:2])
        prefix_BPE = torch.cat([context_BCE, words_BWE], dim=1)
        visible_BP = torch.cat([seen_BC, seen_BW], dim=1)
        return prefix_BPE, Layout(
            prefix_BPE.shape[1], layout.blocks, layout.target, layout.shared, visible_BP
        )


__all__ = ["Predictor"]
