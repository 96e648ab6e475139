"""Which model a config trains: `train.objective`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tcjepa.config import TrainConfig
from tcjepa.model.contrastive import Contrastive
from tcjepa.model.jepa import TCJEPA
from tcjepa.model.learner import Learner
from tcjepa.model.supervised import Supervised, classes_in
from tcjepa.text import TextEncoder, open_text_encoder


def make_model(
    config: TrainConfig, text: TextEncoder | None, classes: Mapping[str, int] | None = None
) -> Learner:
    """Return the model with new weights, the encoder's drawn first.

    `text` is what `text_encoder_of` gives; `classes` are the numbers of classes of `train.labels`,
    without which the supervised baseline is an encoder without heads.
    """
    if config.train.objective == "supervised":
        return Supervised(config.model, classes or {})
    if config.train.objective == "contrastive":
        assert text is not None
        return Contrastive(config.model, text.width)
    return TCJEPA(config.model, text.width if text else None)


def model_like(
    config: TrainConfig, text: TextEncoder | None, tensors: Mapping[str, Tensor]
) -> Learner:
    """Return a model with new weights that can load the state dict `tensors` of such a run."""
    return make_model(
        config, text, dict(zip(config.train.labels, classes_in(tensors), strict=False))
    )


def text_encoder_of(config: TrainConfig) -> TextEncoder | None:
    """Return the frozen text encoder, if the run reads captions; raises `ConfigError`."""
    return open_text_encoder(config.text) if config.reads_captions else None


__all__ = ["make_model", "model_like", "text_encoder_of"]
