"""The `transformers` captioner set up on tiny models, and images for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.captioners.loaded import load_model
from pipeline.captioners.request import CaptionRequest
from pipeline.captioners.transformers import TransformersCaptioner, TransformersConfig
from pipeline.settings import build
from tests.pipeline.captioners import tiny_models as tiny

PROMPTS = {"short": "describe the image in short", "detail": "describe the image in detail"}


def requests_for(count: int) -> list[CaptionRequest]:
    return [
        CaptionRequest(f"{number:032x}", tiny.picture(20 * number, (40 + number, 30)), None)
        for number in range(count)
    ]


def config_for(folder: Path, **changes: Any) -> TransformersConfig:
    data = {"model": str(folder), "prompts": PROMPTS, "max_new_tokens": 6, "device": "cpu"}
    return build(TransformersConfig, data | changes)


def stubbed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Any
) -> tuple[TransformersCaptioner, list[int]]:
    """Let a loaded model's `generate` be `answer(batch)`; return the sizes it is called with."""
    captioner = TransformersCaptioner(config_for(folder, batch_size=4))
    model, sizes = load_model(str(folder), "auto", "cpu"), []

    def generate(batch: Any, inputs: Any, decoding: Any) -> Any:
        sizes.append(len(batch.pictures))
        return answer(batch)

    monkeypatch.setattr(model, "generate", generate)
    return captioner, sizes
