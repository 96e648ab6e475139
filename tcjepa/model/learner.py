"""What the training loop knows of a model: an image encoder, and the loss that trains it.

`TCJEPA` is one; `Supervised` and `Contrastive` are the baselines that it is compared with. All draw
their encoder first, so equal seeds give equal initial encoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from tcjepa.masks import Masks
from tcjepa.model.encoder import Encoder
from tcjepa.model.precision import wide
from tcjepa.text import TextBatch


@dataclass(frozen=True)
class Inputs:
    """One forward pass: normalised images (m, 3, H, W), and of the rest what the model reads."""

    images: Tensor
    masks: Masks | None  # of a JEPA
    text: TextBatch | None
    labels: Tensor | None = None  # (m, K) int64, the class of each image for each of K labels

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        masks = [] if self.masks is None else [self.masks.context, self.masks.targets]
        text = [] if self.text is None else [self.text.words, self.text.valid, self.text.caption]
        return [self.images, *masks, *text, *([] if self.labels is None else [self.labels])]


@dataclass(frozen=True)
class StepOutput:
    """The loss of a step, its terms before weighting, and detached readings."""

    loss: Tensor  # scalar, what is minimised
    terms: dict[str, Tensor]  # a JEPA's: "predict", "sparse", "consistency": scalars
    monitors: dict[str, Tensor]  # detached scalars: "positive_share", "attention_entropy", ...


class Learner(nn.Module, ABC):
    """An image encoder and what trains it.

    Its `forward` takes what `arguments` gives and returns a `StepOutput`.
    """

    encoder: Encoder

    @property
    def kept_encoder(self) -> Encoder:
        """The encoder that training is for: it is evaluated, probed and exported."""
        return self.encoder

    @property
    def has_target(self) -> bool:
        """Whether the kept encoder is another than the trained one: its moving average."""
        return self.kept_encoder is not self.encoder

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoders by name, for monitors."""
        return {"encoder": self.encoder}

    @abstractmethod
    def arguments(self, inputs: Inputs, text_scale: float | Tensor) -> tuple[Any, ...]:
        """Return what `forward` takes; `text_scale` multiplies terms that only captions have."""

    def trained_blocks(self) -> list[nn.Module]:
        """Return the repeated residual blocks whose insides can be computed again."""
        return list(cast(Any, self.encoder.vit.blocks))

    def other_blocks(self) -> list[nn.Module]:
        """Return further repeated modules that are worth sharding and compiling one by one."""
        return []

    def sections(self) -> list[nn.Module]:
        """Return the modules that are also called alone, outside of `forward`."""
        return [self.encoder]

    def finish_step(self, momentum: float) -> None:
        """Do what follows an optimizer step; `momentum` is that of a moving average, if any."""

    def caption_losses(
        self, inputs: Inputs, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """Return the prediction loss with own and with swapped captions; None where there is none.

        `features` are those of `encoders` (m, P, D), not normed further.
        """
        del inputs, features
        return None


def average_pooled(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the mean over patches of an encoder's features (B, D), at least float32."""
    return wide(encoder(images)).mean(dim=1)


__all__ = ["Inputs", "Learner", "StepOutput", "average_pooled"]
