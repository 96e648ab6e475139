"""The captions of a batch as the predictor reads them: word by word, or one vector per caption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tcjepa.model.precision import wide
from tcjepa.text import TextBatch


@dataclass(frozen=True)
class Words:
    """The captions of a batch, with a null caption for images that have none."""

    words: Tensor  # (U, S, F) word embeddings of the distinct captions
    null: Tensor  # (F,) the learned null token: the one word of the null caption, number U
    distinct_valid: Tensor  # (U + 1, S) bool, False at padding; the null caption's last
    index: Tensor  # (B, N) int64 up to U; absent captions repeat a present one of the image
    present: Tensor  # (B, N) bool: captions to attend to, the null caption among them
    real: Tensor  # (B, N) bool: captions given by the data, which the regularizers cover
    valid: Tensor  # (B, N, S) bool, False at padding

    @staticmethod
    def of(text: TextBatch | None, null_F: Tensor, batch: int) -> Words:
        """Append the null caption to a batch's text and give it to images without a caption.

        A caption without a single word is no caption.
        """
        if text is None or text.caption.shape[1] == 0:
            text = _no_text(batch, null_F)
        U, S, _ = text.words.shape
        first = torch.arange(S, device=null_F.device) == 0
        distinct_valid = torch.cat([text.valid, first.unsqueeze(0)])
        own_BN = text.caption.masked_fill(text.caption < 0, U)
        real_BN = (text.caption >= 0) & distinct_valid.any(1)[own_BN]
        # Absent captions repeat the image's first real one, which leaves a maximum as it is and
        # spares a masked copy of (B, N, Q, E); images without any get the null caption throughout.
        captioned_B1 = real_BN.any(1, keepdim=True)
        stand_in_B1 = own_BN.gather(1, real_BN.int().argmax(1, keepdim=True))
        stand_in_B1 = stand_in_B1.masked_fill(~captioned_B1, U)
        index_BN = torch.where(real_BN, own_BN, stand_in_B1)
        leading = torch.arange(real_BN.shape[1], device=null_F.device) == 0
        present_BN = real_BN | (~captioned_B1 & leading)
        words_USF = text.words.to(null_F.dtype)
        valid_BNS = distinct_valid[index_BN]
        return Words(words_USF, null_F, distinct_valid, index_BN, present_BN, real_BN, valid_BNS)

    def embeddings(self) -> Tensor:
        """Return caption embeddings (B, N, F): the mean of each caption's words."""
        valid_US1 = self.distinct_valid[:-1].unsqueeze(2)
        total_UF = (wide(self.words) * valid_US1).sum(1)
        mean_UF = total_UF / valid_US1.sum(1).clamp_min(1)
        table = torch.cat([mean_UF.to(self.null.dtype), self.null.unsqueeze(0)])
        return table.index_select(0, self.index.flatten()).view(*self.index.shape, -1)

    def as_one_caption(self) -> Words:
        """Return each image's captions as one caption, whose words are the caption embeddings."""
        embeddings_BNF, captioned_B = self.embeddings(), self.real.any(1)
        B, N = self.index.shape
        first = torch.arange(N, device=self.index.device) == 0
        distinct_valid = torch.cat([self.present & captioned_B.unsqueeze(1), first.unsqueeze(0)])
        own_B = torch.arange(B, device=self.index.device)
        index_B1 = torch.where(captioned_B, own_B, B).unsqueeze(1)
        return Words(
            words=embeddings_BNF,
            null=self.null,
            distinct_valid=distinct_valid,
            index=index_B1,
            present=torch.ones_like(index_B1, dtype=torch.bool),
            real=captioned_B.unsqueeze(1),
            valid=distinct_valid[index_B1],
        )


def _no_text(batch: int, null_F: Tensor) -> TextBatch:
    return TextBatch(
        words=null_F.new_zeros(0, 1, null_F.shape[0]),
        valid=torch.zeros(0, 1, dtype=torch.bool, device=null_F.device),
        caption=torch.full((batch, 1), -1, dtype=torch.int64, device=null_F.device),
    )


__all__ = ["Words"]
