"""The contrastive baseline: images and captions in one space (CLIP, arXiv 2103.00020).

The same encoder, crops, optimizer and schedules as TC-JEPA's; it sees all patches. The text side
reads the frozen word embeddings that TC-JEPA gets: they are averaged per caption, below as many
trained transformer layers as `model.contrastive.text_depth` says. CLIP's own text encoder is a
trained transformer of 12 layers over its own tokens: that is the difference.

Letters as in docs/architecture.md, and A: images of all ranks, E: width of the common space.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcjepa.model.block import PredictorBlock, layer_norm
from tcjepa.model.config import ContrastiveConfig, ModelConfig
from tcjepa.model.encoder import Encoder, initialise
from tcjepa.model.layout import Layout
from tcjepa.model.learner import Inputs, Learner, StepOutput, average_pooled
from tcjepa.model.precision import wide
from tcjepa.model.ranks import from_all_ranks
from tcjepa.text import TextBatch

#: Cosines are never multiplied by more, "for training stability" (CLIP, Sec. 2.5).
MOST_SCALE: Final = 100.0
#: The logit of pairs that do not count; finite, since a row may have no other.
_NEVER: Final = -1e30
#: Cosines that differ by less are of the same words.
_SAME: Final = 1e-5


class Contrastive(Learner):
    """An encoder and a text side whose outputs agree for an image and its caption.

    Trained with one caption per image and step, the first of those that the loader drew.
    `text_width` is the text encoder's F.
    """

    def __init__(self, config: ModelConfig, text_width: int) -> None:
        super().__init__()
        self.encoder = Encoder(config.encoder, config.encoder_kwargs, config.init_std)
        own, width = config.contrastive, self.encoder.shape.width
        self.project = nn.Linear(width, own.width, bias=False)
        nn.init.normal_(self.project.weight, std=width**-0.5)  # as CLIP's
        self.text = TextSide(text_width, own)
        # A vector, so that it has no weight decay (as in CLIP) and can be sharded.
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(own.temperature)))

    def arguments(self, inputs: Inputs, text_scale: float | Tensor) -> tuple[Any, ...]:
        """Return (images, text); see `Learner`."""
        del text_scale
        return inputs.images, inputs.text

    def trained_blocks(self) -> list[nn.Module]:
        """Return the blocks of both sides; see `Learner`."""
        return [*super().trained_blocks(), *self.text.blocks]

    def finish_step(self, momentum: float) -> None:
        """Keep the scale of the cosines between 1 and `MOST_SCALE`."""
        del momentum
        with torch.no_grad():
            self.log_scale.clamp_(0.0, math.log(MOST_SCALE))

    def forward(self, images: Tensor, text: TextBatch) -> StepOutput:
        """Return the symmetric InfoNCE loss of normalised images (B, 3, H, W) and their captions.

        Of the captions (B, N) the first of each image counts. Images without one, or whose caption
        has no word, are left out: they are nobody's negative either, and the reading `captioned`
        says how large the others' share is. Under several ranks all of their images are negatives;
        then the mean of the ranks' losses, and of their gradients, is that of the global batch.
        """
        image_BE = unit(self.project(average_pooled(self.encoder, images)))
        text_BE, captioned_B = self.text(text)
        text_BE, weight_B1 = unit(text_BE), captioned_B.unsqueeze(1).to(image_BE.dtype)
        first, everyone = from_all_ranks(torch.cat([image_BE, text_BE, weight_B1], dim=1))
        E = image_BE.shape[1]
        images_AE, texts_AE, weight_A1 = torch.split(everyone, [E, E, 1], dim=1)
        with torch.autocast(images.device.type, enabled=False):  # cosines need all their digits
            cosine_BA = image_BE @ texts_AE.T
            back_BA = text_BE @ images_AE.T
            scale = wide(self.log_scale).exp()
            present_A = weight_A1[:, 0].detach() > 0
            rows = first + torch.arange(len(image_BE), device=images.device)
            # Every rank sums its own rows; the mean over ranks is the mean over all.
            share_B = weight_B1[:, 0].detach() / present_A.sum().clamp_min(1)
            share_B = share_B * (len(present_A) // len(rows))
            terms = {
                "image_to_text": _cross_entropy(scale * cosine_BA, present_A, rows, share_B),
                "text_to_image": _cross_entropy(scale * back_BA, present_A, rows, share_B),
            }
        own_B1 = cosine_BA.detach().gather(1, rows.unsqueeze(1))
        best_B = cosine_BA.detach().masked_fill(~present_A, -1.0).amax(dim=1)
        monitors = {
            # Equal captions are equally right.
            "retrieval": ((own_B1[:, 0] >= best_B - _SAME) * share_B).sum(),
            "captioned": weight_B1.detach().mean(),
            "logit_scale": scale.detach()[0],
        }
        loss = 0.5 * (terms["image_to_text"] + terms["text_to_image"])
        return StepOutput(loss, terms, monitors)


class TextSide(nn.Module):
    """Captions from their frozen words: layers if any, masked mean, LayerNorm, two-layer MLP.

    The MLP is ours; behind its text transformer CLIP needs only a matrix.
    """

    def __init__(self, text_width: int, config: ContrastiveConfig) -> None:
        super().__init__()
        width = config.text_width
        self.embed = nn.Linear(text_width, width)
        self.blocks = nn.ModuleList(
            PredictorBlock(width, config.text_heads) for _ in range(config.text_depth)
        )
        self.norm = layer_norm(width)
        self.hidden = nn.Linear(width, width)
        self.project = nn.Linear(width, config.width, bias=False)
        initialise(self, self.blocks)
        for linear in (self.embed, self.hidden, self.project):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, text: TextBatch) -> tuple[Tensor, Tensor]:
        """Return the first captions' vectors (B, E) and whether they have a word (B,) bool."""
        U, S, F = text.words.shape
        words_VSF = text.words.to(self.embed.weight.dtype)
        # One caption more, of no words, for images without any.
        words_VSF = torch.cat([words_VSF, words_VSF.new_zeros(1, S, F)])
        valid_VS = torch.cat([text.valid, text.valid.new_zeros(1, S)])
        x_VSE = self.embed(words_VSF)
        if len(self.blocks):
            # Attention needs something to see, also where the result is not used.
            first_S = torch.arange(S, device=valid_VS.device) == 0
            visible_VS = valid_VS | (first_S & ~valid_VS.any(1, keepdim=True))
            layout = Layout(prefix=S, blocks=1, target=0, shared=False, visible=visible_VS)
            for block in self.blocks:
                x_VSE = block(x_VSE, layout)
        total_VE = (wide(x_VSE) * valid_VS.unsqueeze(2)).sum(1)
        mean_VE = total_VE / valid_VS.sum(1, keepdim=True).clamp_min(1)
        vectors_VE = self.project(functional.gelu(self.hidden(self.norm(mean_VE))))
        own_B = text.caption[:, 0]
        own_B = own_B.masked_fill(own_B < 0, U)
        return vectors_VE.index_select(0, own_B), valid_VS.any(1)[own_B]


def unit(x: Tensor) -> Tensor:
    """Return vectors of length 1 along the last dimension, at least float32."""
    return functional.normalize(wide(x), dim=-1)


def _cross_entropy(logits_BA: Tensor, present_A: Tensor, own_B: Tensor, share_B: Tensor) -> Tensor:
    """Return the weighted sum of -log softmax(logits)[own] among those that are present."""
    counted_BA = logits_BA.masked_fill(~present_A, _NEVER)
    each_B = functional.cross_entropy(counted_BA, own_B, reduction="none")
    # Not a product: the rows that do not count are huge.
    return (torch.where(share_B > 0, each_B, 0.0) * share_B).sum()


__all__ = ["MOST_SCALE", "Contrastive", "TextSide", "unit"]
