"""A folder that Hugging Face's `AutoModel` and `AutoImageProcessor` load, as an `IJepaModel`.

`last_hidden_state` are our patch features; their mean over patches our pooled ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.settings import ConfigError
from tcjepa.data.augment import EVALUATION_MARGIN
from tcjepa.export.source import ExportError, Source, random_images, require_same
from tcjepa.model.jepa import IMAGENET_MEAN, IMAGENET_STD, normalise
from tcjepa.model.tensor_names import to_huggingface

_BILINEAR = 2  # PIL's number
#: Processors compute in float32, in another order than `normalise`.
_PIXEL_TOLERANCE = 1e-5


def require_expressible(source: Source) -> None:
    """Raise `ConfigError` if `IJepaModel` cannot be this architecture."""
    vit: Any = source.encoder.vit
    problems = []
    try:
        to_huggingface(source.tensors)
    except ValueError as error:
        problems.append(str(error))
    if not isinstance(vit.norm_pre, torch.nn.Identity):
        problems.append("it has no norm before the first block")
    if type(vit.blocks[0].mlp.act) is not torch.nn.GELU:
        problems.append("its activation here is gelu")
    if len({block.attn.qkv.bias is None for block in vit.blocks}) > 1:
        problems.append("its blocks are alike")
    if problems:
        raise ConfigError(
            f"--format huggingface: {'; '.join(problems)}, so {source.name} with "
            f"encoder_kwargs {source.kwargs} does not fit; use --format timm or safetensors"
        )


def write(folder: Path, source: Source) -> None:
    """Write config, weights and preprocessing; raises `ConfigError` as `require_expressible`."""
    from safetensors.torch import save_file
    from transformers import BitImageProcessor, IJepaConfig

    require_expressible(source)
    vit: Any = source.encoder.vit
    shape, side = source.encoder.shape, source.image_size
    config = IJepaConfig(
        architectures=["IJepaModel"],
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=vit.blocks[0].mlp.fc1.out_features,
        hidden_act="gelu",
        layer_norm_eps=vit.norm.eps,
        image_size=side,
        patch_size=shape.patch[0],
        qkv_bias=vit.blocks[0].attn.qkv.bias is not None,
    )
    config.save_pretrained(folder)
    tensors = {name: t.contiguous() for name, t in to_huggingface(source.tensors).items()}
    save_file(tensors, folder / "model.safetensors", source.metadata)
    BitImageProcessor(
        do_resize=True,
        size={"shortest_edge": round(side * EVALUATION_MARGIN)},
        resample=_BILINEAR,
        do_center_crop=True,
        crop_size={"height": side, "width": side},
        do_rescale=True,
        do_normalize=True,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        do_convert_rgb=True,
    ).save_pretrained(folder)


def compare(folder: Path, source: Source) -> float:
    """Return the largest difference after reloading model and processor; raises `ExportError`."""
    from transformers import AutoImageProcessor, AutoModel

    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: sorted(names) for kind, names in info.items() if names}
    if wrong or type(model).__name__ != "IJepaModel":
        raise ExportError(f"Hugging Face: {type(model).__name__} does not load: {wrong}")
    with torch.no_grad():
        tokens = model.eval()(random_images(source)).last_hidden_state
    worst = require_same(source, "Hugging Face", tokens, tokens.mean(1))
    side = source.image_size
    pixels = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    processor = AutoImageProcessor.from_pretrained(folder)
    # Resizing differs by rounding between libraries; on a picture of the right size nothing may.
    given = processor(pixels.numpy(), do_resize=False, return_tensors="pt")["pixel_values"]
    difference = float((torch.as_tensor(given) - normalise(pixels[None])).abs().max())
    if not difference <= _PIXEL_TOLERANCE:
        raise ExportError(f"Hugging Face: the image processor is off by {difference:.2g}")
    return worst


def usage(folder: Path) -> tuple[str, str]:
    """Return the two lines that load it."""
    return (
        "from transformers import AutoImageProcessor, AutoModel",
        f"encoder, processor = (auto.from_pretrained({str(folder)!r}) for auto in "
        "(AutoModel, AutoImageProcessor))  # last_hidden_state: patch features (B, P, D)",
    )
