"""The model card that lies in every exported folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tcjepa.evaluate.report import EvaluationResult, measures
from tcjepa.evaluation import TRAINED, UNTRAINED
from tcjepa.export.source import TOLERANCE, Source
from tcjepa.model.jepa import IMAGENET_MEAN, IMAGENET_STD
from tcjepa.train.checkpoint import versions

#: Hub tags of the baselines.
_TAGS = {"supervised": "supervised", "contrastive": "contrastive, image-text"}
_LIBRARIES = {"timm": "timm", "huggingface": "transformers", "safetensors": "safetensors"}


def card(source: Source, kind: str, usage: Sequence[str]) -> str:
    """Return the README.md of an export of one format; `usage` are the lines that load it."""
    shape, train = source.encoder.shape, source.config["train"]
    weights = sum(tensor.numel() for tensor in source.tensors.values())
    seen = source.step * train["batch"]
    start = source.config["model"].get("init")
    lines = [
        "---",
        "license: unknown",
        f"library_name: {_LIBRARIES[kind]}",
        "pipeline_tag: image-feature-extraction",
        f"tags: [{_TAGS.get(source.method, 'self-supervised, ijepa')}]",
        "---",
        f"# {source.method} {source.name}",
        "",
        f"{_origin(source)}; it takes images only.",
        "",
        "```python",
        *usage,
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {source.name}, width {shape.width}, depth {shape.depth}, "
        f"{shape.heads} heads, {shape.patch[0]} px patches, {weights / 1e6:.1f} M weights |",
        f"| images | {source.image_size} px: shorter side to 256/224 of that, centre crop; "
        f"mean {list(IMAGENET_MEAN)}, std {list(IMAGENET_STD)} |",
        "| features | normed patch tokens; their average for probing; no class token; fixed "
        "2-D sine-cosine positions |",
        f"| data | {_place(source.config['data']['shards'])}, {source.images:,} images per epoch |",
        f"| started from | {_place(start) if start else 'random weights'} |",
        f"| training | {source.step:,} steps of {train['batch']} images: {seen:,} images, "
        f"{seen / max(source.images, 1):.1f} epochs |",
        f"| config digest | `{source.metadata['config_digest']}` (SHA-256) |",
        f"| exported by | tcjepa {versions()['tcjepa']}; reloaded, features agree within "
        f"{TOLERANCE:g} |",
        "| licence | unknown: the training run does not record one, nor that of its images"
        + (" and of the weights it started from |" if start else " |"),
        "",
        "## Measured",
        "",
        *_measured(source),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _origin(source: Source) -> str:
    """Return which encoder it is, and what it learned from."""
    if source.method == "supervised":
        labels = ", ".join(source.config["train"]["labels"])
        return f"The encoder of a supervised baseline, trained to classify {labels}"
    if source.method == "contrastive":
        return "The encoder of a contrastive baseline, trained to match images and captions as CLIP"
    encoder = "EMA target encoder" if source.which == "target" else "context encoder"
    helped = " with the help of captions" if source.method == "TC-JEPA" else ""
    return (
        f"The {encoder} of {source.method}, trained without labels to predict the features of "
        f"hidden image blocks{helped}"
    )


def _measured(source: Source) -> list[str]:
    if source.evaluation is None:
        return ["Nothing: the run holds no evaluation of this encoder at this step."]
    trained, untrained = (
        measures(EvaluationResult.from_json(json.dumps(source.evaluation[name])))
        for name in (TRAINED, UNTRAINED)
    )
    rows = [
        f"| {name} | {100 * found.value:.1f} ± {100 * found.error:.1f} | "
        f"{100 * untrained[name].value:.1f} |"
        for name, found in trained.items()
    ]
    return [
        "Of the frozen features, in percent, with standard errors:",
        "",
        "| | this encoder | the same one with random weights |",
        "|---|---|---|",
        *rows,
    ]


def _place(place: str) -> str:
    """Return a place as a stranger may read it: no credentials, no folders of this machine."""
    if "://" in place:  # perhaps a chain, simplecache::s3://key:secret@host/path?token=…
        return re.sub(r"//[^/@]*@", "//", place.partition("?")[0])
    return "/".join(place.rstrip("/").split("/")[-2:])


__all__ = ["card"]
