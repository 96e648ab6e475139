"""What is exported: one encoder of a checkpoint, and what is known of how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tcjepa.config import method
from tcjepa.model.encoder import Encoder
from tcjepa.model.jepa import IMAGENET_MEAN, IMAGENET_STD
from tcjepa.model.weight_sources import under
from tcjepa.train import checkpoint
from tcjepa.train.run import EVALUATION_FILE

Which = Literal["target", "context"]
#: Features may differ by this from ours, in float32, as a share of the largest one if that is
#: above 1: another order of summation rounds differently, another weight is far off.
TOLERANCE = 1e-5


class ExportError(RuntimeError):
    """An export that does not give the encoder's features; nothing of it was kept."""


@dataclass(frozen=True)
class Source:
    """A trained encoder on the CPU, in evaluation mode, and its origin."""

    encoder: Encoder
    which: Which
    step: int
    images: int
    """Images per epoch of the data that it was trained on."""
    config: dict[str, Any]
    """The run's resolved config."""
    evaluation: dict[str, Any] | None
    """`evaluation.json` of this very step and encoder, if it was evaluated."""

    @property
    def name(self) -> str:
        """Return timm's name of the architecture."""
        return str(self.config["model"]["encoder"])

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return `model.encoder_kwargs`."""
        return dict(self.config["model"]["encoder_kwargs"])

    @property
    def image_size(self) -> int:
        """Return the side of the images it takes [px]."""
        return self.encoder.shape.grid[0] * self.encoder.shape.patch[0]

    @property
    def method(self) -> str:
        """Return TC-JEPA, I-JEPA, or the baseline's name."""
        return method(self.config)

    @property
    def is_baseline(self) -> bool:
        """Return whether the run kept no target encoder: it has but one encoder."""
        return not self.method.endswith("JEPA")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the encoder's tensors under timm's names."""
        return {name: tensor.contiguous() for name, tensor in self.encoder.vit.state_dict().items()}

    @property
    def metadata(self) -> dict[str, str]:
        """Return what a safetensors file says of itself: strings, lists and dicts as JSON."""
        return {
            "format": "pt",
            "encoder": self.name,
            "encoder_kwargs": json.dumps(self.kwargs),
            "method": self.method,
            "which": self.which,
            "step": str(self.step),
            "image_size": str(self.image_size),
            "mean": json.dumps(IMAGENET_MEAN),
            "std": json.dumps(IMAGENET_STD),
            "config_digest": digest(self.config),
            "tcjepa_version": checkpoint.versions()["tcjepa"],
        }


def digest(config: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) of a resolved config as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def open_source(target: Path, which: Which, say: Callable[[str], None]) -> Source:
    """Return an encoder of a run's newest checkpoint, or of the checkpoint that `target` is.

    Raises `CheckpointError` if there is none or it is unsound.
    """
    found = checkpoint.resolve(target, say)
    model = found.config["model"]
    encoder = Encoder(model["encoder"], model["encoder_kwargs"])
    tensors = under(found.model, "target_encoder") if which == "target" else {}
    # A baseline has one encoder, which is both.
    encoder.vit.load_state_dict(tensors or under(found.model, "encoder"))
    evaluation = None
    run = checkpoint.run_of(target)
    # The target encoder is the one that is evaluated; a baseline's only encoder is.
    if which == "target" and run is not None and (run / EVALUATION_FILE).exists():
        read = json.loads((run / EVALUATION_FILE).read_text())
        evaluation = read if read.get("step") == found.step else None
    return Source(encoder.eval(), which, found.step, found.images, found.config, evaluation)


def random_images(source: Source) -> Tensor:
    """Return the two normalised images (2, 3, H, H) that exports are compared on."""
    side = source.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features_of(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return an encoder's patch features (B, P, D) in evaluation mode."""
    features: Tensor = encoder.eval()(images)
    return features


def require_same(source: Source, what: str, tokens: Tensor, pooled: Tensor) -> float:
    """Return by how much features of `random_images` differ at most from our encoder's.

    `tokens` (2, P, D), `pooled` (2, D) their average. Raises `ExportError` above `TOLERANCE`.
    """
    ours = features_of(source.encoder, random_images(source))
    worst = 0.0
    for kind, given, expected in (("patch", tokens, ours), ("pooled", pooled, ours.mean(1))):
        if given.shape != expected.shape:
            raise ExportError(
                f"{what}: {kind} features are {tuple(given.shape)}, not {tuple(expected.shape)}"
            )
        difference = float((given.detach() - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):  # NaN is wrong too
            raise ExportError(
                f"{what}: reloaded, its {kind} features differ from the encoder's by up to "
                f"{difference:.2g}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


__all__ = [
    "TOLERANCE",
    "ExportError",
    "Source",
    "Which",
    "digest",
    "features_of",
    "open_source",
    "random_images",
    "require_same",
]
