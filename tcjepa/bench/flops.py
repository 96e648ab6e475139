"""Floating-point operations of a training step per image, counted from the model's sizes.

What the method needs, not what a program happens to spend: recomputed activations, padding and
optimizer are left out, as in the usual MFU (PaLM, arXiv 2204.02311, App. B). A multiply-add is 2.

- A matrix of i inputs and o outputs costs 2·i·o per token; attention of X tokens over Y of width E
  costs 4·X·Y·E (scores and mixture). Norms, softmax, GELU and the losses count as nothing.
- Trained parts cost three times their forward pass: once forward, twice backward. The first matrix
  behind an image or a word costs twice: neither gets a gradient.
- The target encoder (all patches) and the text encoder run forward only.

Letters as in docs/architecture.md; P here also the prefix of `tcjepa.model.layout`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from tcjepa.masks import MaskConfig, token_counts
from tcjepa.model.conditioner import Conditioner
from tcjepa.model.contrastive import Contrastive
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.learner import Learner
from tcjepa.model.predictor import Predictor

#: Dense bf16 peaks by name as torch gives it, from NVIDIA's data sheets [FLOP/s]. The first name
#: that is a part of the device's wins.
BF16_PEAKS: Final = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
)
#: Forward and backward; where the input needs no gradient; forward only.
TRAINED, FIRST, FROZEN = 3, 2, 1


@dataclass(frozen=True)
class Captions:
    """The text of an average image."""

    count: float  # captions per image, N
    words: float  # words per caption, S; padding only if the count is to include it
    distinct: float = 1.0  # distinct captions of a batch / all of them


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step, per image."""

    encoder: float  # the context encoder, forward and backward
    target: float  # the target encoder, forward
    predictor: float  # forward and backward, without what text adds
    conditioner: float  # what text adds to the predictor, forward and backward
    text: float = 0.0  # the text encoder, forward

    @property
    def model(self) -> float:
        """Return all but the text encoder's."""
        return self.encoder + self.target + self.predictor + self.conditioner

    @property
    def total(self) -> float:
        """Return everything."""
        return self.model + self.text


def flops_per_image(
    model: TCJEPA,
    masks: MaskConfig,
    captions: Captions | None = None,
    text_encoder: nn.Module | None = None,
) -> Flops:
    """Return the count of a model (on any device, "meta" too) at a masking and text.

    Token counts are those of the `uniform` sampler; the reference sampler's contexts are shorter.
    `captions` is needed by a text-conditioned model. `text_encoder` is a transformer of Hugging
    Face, or None for embeddings that cost nothing. Raises `ConfigError` as `token_counts` does.
    """
    shape = model.encoder.shape
    sizes = token_counts(masks, shape.grid)
    text = captions if captions is not None and model.config.text is not None else Captions(0, 0)
    predictor, conditioner = _predictor(
        model.predictor, sizes.context, masks.targets, sizes.target, text
    )
    return Flops(
        encoder=_encoder(model, sizes.context, FIRST, TRAINED),
        target=_encoder(model, shape.patches, FROZEN, FROZEN),
        predictor=predictor,
        conditioner=conditioner,
        text=0.0 if text_encoder is None else _text_encoder(text_encoder, text),
    )


def baseline_flops(model: Learner, captions: Captions | None = None) -> float:
    """Return the count of a baseline's step per image; its heads count as nothing.

    `captions` are those that the loader gives; the contrastive baseline reads one of an image, and
    distinct ones once.
    """
    encoder = bare_encoder_flops(model)
    if not isinstance(model, Contrastive) or captions is None:
        return encoder
    side = model.text
    layers = captions.words * _matrices(side.blocks)
    layers += 4.0 * captions.words**2 * side.embed.out_features * len(side.blocks)
    own = FIRST * captions.words * _matrices([side.embed])
    own += TRAINED * (layers + _matrices([side.hidden, side.project]))
    return encoder + captions.distinct * own


def bare_encoder_flops(model: Learner) -> float:
    """Return the count of the encoder alone, forward and backward on all patches, per image."""
    return _encoder(model, model.encoder.shape.patches, FIRST, TRAINED)


def peak_flops(device: str) -> float | None:
    """Return a GPU's dense bf16 peak [FLOP/s] by its name; None where it is not listed."""
    return next((peak for name, peak in BF16_PEAKS if name in device), None)


def _encoder(model: Learner, tokens: int, patch_passes: int, passes: int) -> float:
    """Return the count of an encoder that embeds all patches and keeps `tokens` of them."""
    shape, vit = model.encoder.shape, model.encoder.vit
    pixels = 3 * shape.patch[0] * shape.patch[1]
    embed = 2.0 * shape.patches * pixels * shape.width
    attention = 4.0 * tokens**2 * shape.width * shape.depth
    return patch_passes * embed + passes * (tokens * _matrices(vit.blocks) + attention)


def _predictor(
    predictor: Predictor, context: int, blocks: int, target: int, text: Captions
) -> tuple[float, float]:
    """Return (without what text adds, what it adds)."""
    layout = _Tokens(context, blocks, target, predictor.config.share_context)
    plain = _blocks(predictor, layout)
    plain += context * _matrices([predictor.embed])
    plain += blocks * target * _matrices([predictor.project])
    if predictor.text is None:
        return TRAINED * plain, 0.0
    words, distinct = text.count * text.words, text.count * text.words * text.distinct
    kind = predictor.text.conditioning
    added = 0.0
    if kind == "feature":
        added = TRAINED * text.count * _matrices([predictor.embed_text])
    elif kind == "adaln":
        added = TRAINED * text.count * _matrices(predictor.conditioners)
    elif kind == "sequence":
        longer = _Tokens(context + words, blocks, target, layout.shared)
        added = FIRST * distinct * _matrices([predictor.embed_text])
        added += TRAINED * (_blocks(predictor, longer) - _blocks(predictor, layout))
    else:
        last = len(predictor.blocks) - 1
        for layer, conditioner in zip(predictor.conditioned, predictor.conditioners, strict=True):
            # Behind the last layer only target tokens are read.
            read = blocks * target if layer == last else layout.count
            assert isinstance(conditioner, Conditioner)
            if kind == "caption_attention":
                # Caption embeddings hold the learned null caption, and so need a gradient.
                added += _conditioner(conditioner, layout.count, read, 1, text.count)
                added += TRAINED * text.count * _keys_and_values(conditioner)
            else:
                added += _conditioner(conditioner, layout.count, read, text.count, words)
                added += FIRST * distinct * _keys_and_values(conditioner)
    return TRAINED * plain, added


@dataclass(frozen=True)
class _Tokens:
    """The sizes of a `tcjepa.model.layout.Layout`."""

    prefix: float
    blocks: int
    target: int
    shared: bool

    @property
    def count(self) -> float:
        """Return Q, the tokens of an image."""
        if self.shared:
            return self.prefix + self.blocks * self.target
        return self.blocks * (self.prefix + self.target)

    @property
    def pairs(self) -> float:
        """Return how many (query, key) pairs see each other."""
        own = self.prefix + self.target
        if self.shared:
            return self.prefix**2 + self.blocks * self.target * own
        return self.blocks * own**2


def _blocks(predictor: Predictor, tokens: _Tokens) -> float:
    attention = 4.0 * tokens.pairs * predictor.config.width * len(predictor.blocks)
    return tokens.count * _matrices(predictor.blocks) + attention


def _conditioner(
    conditioner: Conditioner, queries: float, read: float, captions: float, words: float
) -> float:
    """Return one layer's count without its keys and values, of which an image has `words`."""
    width = conditioner.query.in_features
    scores, mixture = 2.0 * queries * words * width, 2.0 * read * words * width
    times = 1 if conditioner.fuse == "before_mlp" else captions
    mlp = read * times * _matrices([conditioner.mlp])
    return TRAINED * (queries * _matrices([conditioner.query]) + scores + mixture + mlp)


def _keys_and_values(conditioner: Conditioner) -> float:
    """Return one layer's count per word, forward."""
    return _matrices([conditioner.key, conditioner.value])


def _text_encoder(encoder: nn.Module, text: Captions) -> float:
    """Return the count of a transformer that sees each distinct caption on its own."""
    config: Any = encoder.config
    width = getattr(config, "d_kv", 0) * config.num_attention_heads or config.hidden_size
    attention: float = 4.0 * text.words**2 * width * config.num_hidden_layers
    # A pooler works on one token per caption, and its output is not read.
    layers = [part for name, part in encoder.named_children() if name not in ("pooler", "lm_head")]
    return text.count * text.distinct * (text.words * _matrices(layers) + attention)


def _matrices(modules: Iterable[nn.Module | None]) -> float:
    """Return what the linear layers of some modules cost per token, forward."""
    parts = (part for module in modules if module is not None for part in module.modules())
    return sum(
        2.0 * part.in_features * part.out_features for part in parts if isinstance(part, nn.Linear)
    )


__all__ = [
    "BF16_PEAKS",
    "Captions",
    "Flops",
    "bare_encoder_flops",
    "baseline_flops",
    "flops_per_image",
    "peak_flops",
]
