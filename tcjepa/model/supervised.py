"""The supervised baseline: classes from average-pooled features, the ceiling of what labels teach.

The same encoder, crops, optimizer and schedules as TC-JEPA's; it sees all patches and has a linear
head per label. K: labels, B: images, D: encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tcjepa.model.config import ModelConfig
from tcjepa.model.encoder import INIT_STD, Encoder
from tcjepa.model.learner import Inputs, Learner, StepOutput, average_pooled
from tcjepa.model.precision import wide


class Supervised(Learner):
    """An encoder under linear heads; `classes` gives each label's number of classes."""

    def __init__(self, config: ModelConfig, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.encoder = Encoder(config.encoder, config.encoder_kwargs, config.init_std)
        self.labels = tuple(classes)
        self.heads = nn.ModuleList(
            nn.Linear(self.encoder.shape.width, count) for count in classes.values()
        )
        for head in self.heads.children():
            assert isinstance(head, nn.Linear)
            nn.init.trunc_normal_(head.weight, std=INIT_STD)
            nn.init.zeros_(head.bias)

    def arguments(self, inputs: Inputs, text_scale: float | Tensor) -> tuple[Any, ...]:
        """Return (images, labels); see `Learner`."""
        del text_scale
        assert inputs.labels is not None
        return inputs.images, inputs.labels

    def forward(self, images: Tensor, labels_BK: Tensor) -> StepOutput:
        """Return the mean over labels of the cross-entropy, of normalised images (B, 3, H, W).

        `labels_BK` are class numbers, int64.
        """
        pooled_BD = average_pooled(self.encoder, images)
        terms: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        for number, (label, head) in enumerate(zip(self.labels, self.heads, strict=True)):
            logits_BC = wide(head(pooled_BD))
            own_B = labels_BK[:, number]
            terms[f"cross_entropy_{label}"] = functional.cross_entropy(logits_BC, own_B)
            hits_B = logits_BC.detach().argmax(dim=1) == own_B
            monitors[f"accuracy_{label}"] = hits_B.float().mean()
        return StepOutput(torch.stack(list(terms.values())).mean(), terms, monitors)


def classes_in(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the number of classes of each head of a `Supervised` by its state dict, in order."""
    names = sorted(
        (name for name in tensors if name.startswith("heads.") and name.endswith(".bias")),
        key=lambda name: int(name.split(".")[1]),
    )
    return [len(tensors[name]) for name in names]


__all__ = ["Supervised", "classes_in"]
