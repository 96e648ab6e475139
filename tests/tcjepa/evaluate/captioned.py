"""Captioned images of objects whose place is known, for tests of what the text path does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.schema import Caption
from tcjepa.evaluate.captioned import CaptionedImages
from tcjepa.model.config import ModelConfig, PredictorConfig, TextConditioning
from tcjepa.model.jepa import TCJEPA
from tests.tcjepa.shards import caption

SIZE, GRID, WORDS = 32, (4, 4), 16


def box(category: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    """Return an annotated object; edges in fractions of the image."""
    return {"category": category, "attributes": [], "box": [left, top, right, bottom]}


def noun(text: str, *words: str) -> Caption:
    """Return a caption whose nouns are the first occurrences of `words`."""
    spans = [[text.index(word), text.index(word) + len(word)] for word in words]
    return {**caption(text), "nouns": spans}


def images_of(
    captions: Sequence[Sequence[Caption | str]],
    objects: Sequence[Sequence[dict[str, Any] | str] | None],
    size: tuple[int, int] = (256, 256),
) -> CaptionedImages:
    """Return noise images with these captions and objects; `size` is (width, height) [px]."""
    generator = torch.Generator().manual_seed(0)
    records = [
        {"width": size[0], "height": size[1]}
        | ({} if own is None else {"annotations": json.dumps({"objects": list(own)})})
        for own in objects
    ]
    return CaptionedImages(
        uids=tuple(f"{number:032x}" for number in range(len(captions))),
        images=torch.randint(
            256, (len(captions), 3, SIZE, SIZE), generator=generator, dtype=torch.uint8
        ),
        captions=[[caption(c) if isinstance(c, str) else c for c in own] for own in captions],
        records=records,
    )


def tiny_model(conditioning: str = "word_attention", seed: int = 0) -> TCJEPA:
    """Return an untrained model of 4 x 4 patches and two predictor layers."""
    torch.manual_seed(seed)
    config = ModelConfig(
        encoder="vit_base_patch16_gap_224",
        encoder_kwargs={
            "img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2
        },
        predictor=PredictorConfig(width=16, depth=2),
        text=TextConditioning(
            conditioning=conditioning,
            sparsity="rectified" if conditioning == "word_attention" else "none",
        ),
    )  # fmt: skip
    return TCJEPA(config, WORDS)
