"""The `embed` section: the image-text dual encoder that `alignment: clip` and semantic duplicates
share, so that every image goes through it once.

Imports nothing heavy; the model itself is in `pipeline.scorers.dual_encoder`.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.settings import PACE, Settings


class EncoderConfig(Settings):
    """What every encoder that scores need is told: which model, and how it runs."""

    model: str = Field(description="hub name, or a folder written by save_pretrained")
    revision: str | None = Field(
        default=None, description="commit, branch or tag on the hub; null is its main branch"
    )
    batch_size: int = Field(
        default=256, ge=1, le=8192, description="per forward pass; halved on OOM [items]"
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="weights and activations; auto is bf16 on GPUs that have it"
    )
    device: str = Field(
        default="auto", description="torch device; auto is cuda if there is one, else cpu"
    )
    resources: dict[str, float] = Field(
        default={},
        description="Dask worker resources the encoder needs, such as {GPU: 1}",
        json_schema_extra=PACE,
    )

    @model_validator(mode="after")
    def _runnable(self) -> Self:
        if not self.model.strip():
            raise ValueError("model: empty; give a hub name or a folder")
        if self.device != "auto" and not re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", self.device):
            raise ValueError(f"device: got {self.device!r}, allowed: auto, cpu, mps, cuda, cuda:0")
        return self


class EmbedConfig(EncoderConfig):
    """A CLIP-like model by hub name or folder: CLIP, SigLIP, SigLIP 2, others of two towers."""

    model: str = Field(
        description="hub name such as openai/clip-vit-base-patch32 (whose scores LAION's threshold "
        "is for) or google/siglip2-base-patch16-224, or a folder written by save_pretrained"
    )


__all__ = ["EmbedConfig", "EncoderConfig"]
