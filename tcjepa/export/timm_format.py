"""A folder that `timm.create_model("local-dir:…", pretrained=True)` loads; its file alone does too.

timm pools the normed tokens by averaging, so that `forward_features` are our patch features, and
`forward_head(…, pre_logits=True)`, as well as the model itself, our pooled ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tcjepa.data.augment import EVALUATION_MARGIN
from tcjepa.export import plain
from tcjepa.export.source import Source, features_of, random_images, require_same
from tcjepa.model.encoder import timm_arguments
from tcjepa.model.jepa import IMAGENET_MEAN, IMAGENET_STD

CONFIG_FILE = "config.json"


def write(folder: Path, source: Source) -> None:
    """Write weights and timm's config, which names architecture, arguments and preprocessing."""
    plain.write(folder, source)
    side = source.image_size
    config = {
        "architecture": source.name,
        "num_classes": 0,
        "num_features": source.encoder.shape.width,
        "global_pool": "avg",
        "model_args": _model_arguments(source),
        "pretrained_cfg": {
            "tag": f"{source.method.lower().replace('-', '')}_{source.which}",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1 / EVALUATION_MARGIN,
            "crop_mode": "center",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def compare(folder: Path, source: Source) -> float:
    """Return the largest difference after loading folder and file; raises `ExportError` if any."""
    import timm

    file = folder / plain.FILE
    models = {
        "timm folder": timm.create_model(f"local-dir:{folder}", pretrained=True),
        "timm checkpoint_path": timm.create_model(
            source.name, pretrained=False, checkpoint_path=str(file), **_model_arguments(source)
        ),
    }
    images = random_images(source)
    worst = 0.0
    for what, model in models.items():
        pooled = features_of(model, images)
        with torch.no_grad():
            tokens = model.forward_features(images)
            head = model.forward_head(tokens, pre_logits=True)
        for average in (pooled, head):
            worst = max(worst, require_same(source, what, tokens, average))
    return worst


def usage(folder: Path) -> tuple[str, str]:
    """Return the two lines that load it."""
    return (
        "import timm",
        f"encoder = timm.create_model('local-dir:{folder}', pretrained=True).eval()"
        "  # (B, 3, H, H) -> pooled features (B, D)",
    )


def _model_arguments(source: Source) -> dict[str, Any]:
    arguments = timm_arguments(source.kwargs)
    del arguments["pretrained"]
    return arguments
