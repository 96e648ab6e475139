"""TC-JEPA: context encoder, EMA target encoder and text-conditioned predictor in one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcjepa.masks import Masks
from tcjepa.model import losses
from tcjepa.model.conditioner import WordAttention
from tcjepa.model.config import ModelConfig
from tcjepa.model.encoder import Encoder, gather_patches
from tcjepa.model.learner import Inputs, Learner, StepOutput
from tcjepa.model.precision import wide
from tcjepa.model.predictor import Predictor
from tcjepa.model.spread import spread_terms
from tcjepa.model.words import Words
from tcjepa.text import TextBatch, swap_captions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: Readings of the word attention look at every so-many-th predictor token [tokens].
MONITOR_STRIDE = 8
#: Readings of a training step are of the first images of a forward pass [images].
MONITOR_IMAGES = 16


class TCJEPA(Learner):
    """Text-Conditional JEPA; with `config.text` null, I-JEPA.

    `text_width` is the text encoder's F and may be None only without text conditioning.
    """

    def __init__(self, config: ModelConfig, text_width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.encoder_kwargs, config.init_std)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        self.predictor = Predictor(config, self.encoder.shape, text_width)

    def train(self, mode: bool = True) -> TCJEPA:
        """Set the training mode; the target encoder always stays in evaluation mode."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    @property
    def kept_encoder(self) -> Encoder:
        """The target encoder; see `Learner`."""
        return self.target_encoder

    def encoders(self) -> dict[str, Encoder]:
        """Return the context encoder, `encoder`, and the `target_encoder`."""
        return {"encoder": self.encoder, "target_encoder": self.target_encoder}

    def arguments(self, inputs: Inputs, text_scale: float | Tensor) -> tuple[Any, ...]:
        """Return (images, masks, text, text_scale); see `Learner`."""
        return inputs.images, inputs.masks, inputs.text, text_scale

    def trained_blocks(self) -> list[nn.Module]:
        """Return the encoder's and the predictor's blocks.

        Conditioners keep their insides: the regularizers read every layer's cosines in any case.
        """
        return [*super().trained_blocks(), *self.predictor.blocks]

    def other_blocks(self) -> list[nn.Module]:
        """Return the target encoder's blocks and the conditioners."""
        targets: Any = self.target_encoder.vit.blocks
        return [*targets, *self.predictor.conditioners]

    def sections(self) -> list[nn.Module]:
        """Return both encoders, split alike, and the predictor; see `Learner`."""
        return [self.encoder, self.target_encoder, self.predictor]

    def forward(
        self,
        images: Tensor,
        masks: Masks,
        text: TextBatch | None = None,
        regularizer_scale: float | Tensor = 1.0,
    ) -> StepOutput:
        """Return loss, terms and monitors of a batch of normalised images (B, 3, H, W).

        `regularizer_scale` is the warm-up factor of both regularizers
        (`TextConditioning.regularizer_scale`); pass a scalar tensor under `torch.compile`, which
        would specialise on a float.
        """
        target_BPD = self.targets(images)
        B, M, T = masks.targets.shape
        target_BMTD = gather_patches(target_BPD, masks.targets.flatten(1)).view(B, M, T, -1)
        context_BCD = self.encoder(images, masks.context)
        predicted_BMTD, attentions, words = self.predictor(context_BCD, masks, text)

        predict = losses.prediction_loss(predicted_BMTD, target_BMTD, self.config.prediction_loss)
        terms, loss = {"predict": predict}, predict
        monitors = {
            "context_std": _feature_std(context_BCD[:MONITOR_IMAGES]),
            "target_std": _feature_std(target_BMTD[:MONITOR_IMAGES].flatten(1, 2)),
        }
        if self.config.spreads:
            spread = spread_terms(context_BCD)
            terms |= spread
            loss = (
                loss
                + self.config.variance_weight * spread["variance"]
                + self.config.covariance_weight * spread["covariance"]
            )
        if words is not None:
            regularizers = self._regularizers(attentions, words)
            terms |= regularizers
            text_config = self.config.text
            assert text_config is not None
            if regularizers:
                loss = loss + regularizer_scale * (
                    text_config.sparsity_weight * regularizers["sparse"]
                    + text_config.consistency_weight * regularizers["consistency"]
                )
            monitors |= _word_monitors(attentions, words, self.predictor.conditioned)
        return StepOutput(loss, terms, monitors)

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """Return the target encoder's features (B, P, D), layer-normed without affine, no grad."""
        features_BPD = self.target_encoder(images)
        return functional.layer_norm(features_BPD, features_BPD.shape[-1:])

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder: target <- momentum * target + (1 - momentum) * encoder."""
        targets: list[Tensor] = list(self.target_encoder.parameters())
        onlines: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_lerp_(targets, onlines, 1.0 - momentum)

    def finish_step(self, momentum: float) -> None:
        """Update the target encoder."""
        self.update_target(momentum)

    def caption_losses(
        self, inputs: Inputs, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return the loss with own and with swapped captions, under the same masks, float32.

        None without text and for a single image, whose captions have nowhere to go.
        """
        if inputs.text is None or inputs.masks is None or len(inputs.images) < 2:
            return None
        # Both losses share the targets and the context: only the predictor runs twice.
        B, M, T = inputs.masks.targets.shape
        seen_BPD = features["target_encoder"]
        target_BPD = functional.layer_norm(seen_BPD, seen_BPD.shape[-1:])
        target_BMTD = gather_patches(target_BPD, inputs.masks.targets.flatten(1)).view(B, M, T, -1)
        context_BCD = self.encoder(inputs.images, inputs.masks.context)
        own, other = (
            losses.prediction_loss(
                self.predictor(context_BCD, inputs.masks, text)[0],
                target_BMTD,
                self.config.prediction_loss,
            ).float()
            for text in (inputs.text, swap_captions(inputs.text))
        )
        return own, other

    def _regularizers(self, attentions: Sequence[WordAttention], words: Words) -> dict[str, Tensor]:
        config = self.config.text
        if config is None or config.sparsity == "none":
            return {}
        cosines = [attention.cosine for attention in attentions]
        weights_BN = losses.caption_weights(words.real, cosines[0].dtype)
        similarities = [losses.rectify(cosine) for cosine in cosines]
        if config.sparsity == "rectified":
            sparse = losses.sparsity(similarities, weights_BN)
        else:
            sparse = losses.entropy_sparsity(
                cosines, words.valid, weights_BN, config.entropy_temperature
            )
        return {"sparse": sparse, "consistency": losses.consistency(similarities, weights_BN)}


def normalise(images: Tensor) -> Tensor:
    """Return float32 images with ImageNet's mean and std of uint8 ones (B, 3, H, W)."""
    mean, std = _statistics(images.device)
    return (images.float() - mean) / std


@lru_cache(maxsize=8)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet's mean and std of bytes (1, 3, 1, 1); copied to a device only once."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.to(device), std.to(device)


@torch.no_grad()
def _feature_std(x_BKD: Tensor) -> Tensor:
    """Return the mean over features of their std over batch and patches; 0 at collapse."""
    return wide(x_BKD).flatten(0, 1).std(0, correction=0).mean()


@torch.no_grad()
def _word_monitors(
    attentions: Sequence[WordAttention], words: Words, layers: Sequence[int]
) -> dict[str, Tensor]:
    """Return readings that show whether the text path lives (all shares in [0, 1]).

    `layers` are the numbers of the predictor layers that `attentions` are of.

    Of the first `MONITOR_IMAGES` images and every `MONITOR_STRIDE`-th token: the full tensors would
    be read a dozen times per step.
    """
    valid, real = words.valid[:MONITOR_IMAGES], words.real[:MONITOR_IMAGES]
    valid_BNS = valid & real.unsqueeze(-1)
    weights_BN = losses.caption_weights(real)
    pairs = valid_BNS.sum().clamp_min(1)
    captioned = real.any(1)
    positive_shares, entropies, wordless = [], [], []
    for attention in attentions:
        cosine_BNSQ = attention.cosine[:MONITOR_IMAGES, ..., ::MONITOR_STRIDE]
        weights_BNSQ = attention.weights[:MONITOR_IMAGES, ..., ::MONITOR_STRIDE]
        positive_BNSQ = (cosine_BNSQ > 0) & valid_BNS.unsqueeze(-1)
        Q = positive_BNSQ.shape[-1]
        positive_shares.append(positive_BNSQ.sum() / (pairs * Q))
        without_BQ = ~positive_BNSQ.flatten(1, 2).any(1)
        wordless_B = without_BQ.float().mean(1) * captioned
        wordless.append(wordless_B.sum() / captioned.sum().clamp_min(1))
        entropies.append(losses.attention_entropy(weights_BNSQ, valid, weights_BN))
    monitors: dict[str, Any] = {
        f"positive_share_layer{layer}": share
        for layer, share in zip(layers, positive_shares, strict=True)
    }
    return {
        "positive_share": torch.stack(positive_shares).mean(),
        "attention_entropy": torch.stack(entropies).mean(),
        "wordless_patches": torch.stack(wordless).mean(),
        **monitors,
    }


__all__ = ["TCJEPA", "normalise"]
