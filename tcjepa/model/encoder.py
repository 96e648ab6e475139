"""The image encoder: a timm ViT that can be shown some of an image's patches only.

Positions are fixed 2-D sine-cosine vectors and weights start as in I-JEPA's public code
(facebookresearch/ijepa, src/models/vision_transformer.py): truncated normal, of std 0.02 unless a
config says otherwise, and the last matrix of each residual branch scaled by 1/sqrt(2 * layer).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcjepa.model.precision import wide

#: I-JEPA's, for widths from 768.
INIT_STD = 0.02

#: Arguments of timm's VisionTransformer that would make features random or their shape depend on
#: the image. I-JEPA has no dropout of any kind; a resumed run must repeat its losses exactly.
_UNUSABLE_KWARGS = (
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "dynamic_img_size",
    "dynamic_img_pad",
)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder: patch grid (rows, columns), width D, depth, heads, pixels per patch."""

    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    patch: tuple[int, int]

    @property
    def image(self) -> tuple[int, int]:
        """Return the size of the images it takes (height, width) [px]."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def patches(self) -> int:
        """Return P, the number of patches of the grid."""
        return self.grid[0] * self.grid[1]


class Encoder(nn.Module):
    """Patch features of an image, from all of its patches or from the kept ones only."""

    def __init__(self, name: str, kwargs: dict[str, Any], init_std: float = INIT_STD) -> None:
        super().__init__()
        self.vit = _create(name, kwargs)
        self.shape = _shape(self.vit)
        self.vit.pos_embed = nn.Parameter(
            sincos_positions(self.shape.grid, self.shape.width)[None], requires_grad=False
        )
        initialise(self.vit, self.vit.blocks, init_std)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return normed patch features (B, P, D), or (B, C, D) of the patches `keep` (B, C).

        `images` is (B, 3, H, W), normalised. Patches left out are dropped before the first block,
        so the features cannot depend on them.
        """
        # In float32 whatever dtype a sharded run gathers weights in: blocks add to this for long.
        x_BPD = wide(self.vit.patch_embed(images)) + wide(self.vit.pos_embed)
        if keep is not None:
            x_BPD = gather_patches(x_BPD, keep)
        return cast(Tensor, self.vit.norm(self.vit.blocks(self.vit.norm_pre(x_BPD))))


def gather_patches(x_BPD: Tensor, index_BK: Tensor) -> Tensor:
    """Return features (B, K, D) at patch numbers `index_BK` (B, K) of features (B, P, D)."""
    B, P, D = x_BPD.shape
    # Whole rows: `gather` would move, and its backward scatter, element by element.
    rows = index_BK + P * torch.arange(B, device=index_BK.device).unsqueeze(1)
    return x_BPD.reshape(B * P, D).index_select(0, rows.flatten()).view(*index_BK.shape, D)


#: Sizes found so far: 0.1 s each, and a study checks hundreds of configs of a few encoders.
_shapes: dict[tuple[str, str], EncoderShape] = {}


def encoder_shape(name: str, kwargs: dict[str, Any]) -> EncoderShape:
    """Return an encoder's sizes without allocating its weights; raises `ValueError` if unusable."""
    key = (name, repr(sorted(kwargs.items())))
    if key not in _shapes:
        with torch.device("meta"):
            _shapes[key] = _shape(_create(name, kwargs))
    return _shapes[key]


def timm_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of `timm.create_model` that give an encoder's architecture.

    `fc_norm=False` keeps the last LayerNorm on the tokens, where I-JEPA has it; many pooled timm
    models would put it behind the pooling and leave the tokens unnormalised.
    """
    defaults = {"fc_norm": False, "global_pool": "avg"}
    return {**defaults, **kwargs, "pretrained": False, "num_classes": 0}


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed positions (P, width), float32: half for the column, half for the row (I-JEPA).

    `width` must be a multiple of 4.
    """
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()


def initialise(module: nn.Module, blocks: Iterable[nn.Module], std: float = INIT_STD) -> None:
    """Initialise a ViT in place as I-JEPA's code does; `blocks` are its residual blocks."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for layer, block in enumerate(blocks, start=1):
            cast(Any, block).attn.proj.weight.div_(math.sqrt(2.0 * layer))
            cast(Any, block).mlp.fc2.weight.div_(math.sqrt(2.0 * layer))


def _create(name: str, kwargs: dict[str, Any]) -> Any:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("vit*"), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"encoder: timm has no model {name!r}{hint}")
    if not timm.model_entrypoint(name).__module__.endswith(".vision_transformer"):
        raise ValueError(
            f"encoder: {name} is not a plain timm VisionTransformer; take e.g. "
            "vit_base_patch16_gap_224"
        )
    _check_arguments(name, kwargs)
    try:
        vit = timm.create_model(name, **timm_arguments(kwargs))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ValueError(f"encoder_kwargs: timm cannot build {name}: {error}") from error
    if type(vit) is not VisionTransformer:
        raise ValueError(
            f"encoder: {name} is a {type(vit).__name__}, not a timm VisionTransformer; "
            "take e.g. vit_base_patch16_gap_224"
        )
    if vit.num_prefix_tokens:
        raise ValueError(
            f"encoder: {name} has a class token or register tokens; take a `*_gap_*` model without "
            "registers, or set encoder_kwargs {class_token: false, reg_tokens: 0, global_pool: avg}"
        )
    if not len(vit.blocks):
        raise ValueError("encoder_kwargs.depth: an encoder needs a block or more")
    if any(not hasattr(b, "attn") or not hasattr(b.mlp, "fc2") for b in vit.blocks):
        raise ValueError(
            f"encoder: {name} has blocks of {type(vit.blocks[0]).__name__}, not of one attention "
            "and one MLP (attn.proj, mlp.fc2) in a row; take e.g. vit_small_patch16_224"
        )
    if vit.pos_embed is None or not isinstance(vit.norm, nn.LayerNorm):
        raise ValueError(f"encoder: {name} needs absolute positions and a final LayerNorm")
    if vit.embed_dim % 4:
        raise ValueError(f"encoder: width {vit.embed_dim} of {name} is not a multiple of 4")
    _check_patches(vit)
    return vit


def _check_arguments(name: str, kwargs: dict[str, Any]) -> None:
    for key in _UNUSABLE_KWARGS:
        if kwargs.get(key):
            raise ValueError(
                f"encoder_kwargs.{key}: leave it out; features must be a function of the image, of "
                "one shape"
            )
    if kwargs.get("pretrained"):
        raise ValueError(
            "encoder_kwargs.pretrained: leave it out; weights to start from are model.init, e.g. "
            f"the timm name {name} with its tag"
        )
    pooling = timm_arguments(kwargs)["global_pool"]
    if pooling != "avg":
        raise ValueError(
            f"encoder_kwargs.global_pool={pooling}: exported encoders average their tokens; set "
            "global_pool=avg or leave it out"
        )


def _check_patches(vit: Any) -> None:
    """Refuse images that patches do not fill: timm would cut off the rest without a word."""
    size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if any(side % own for side, own in zip(size, patch, strict=True)):
        raise ValueError(
            f"encoder_kwargs.img_size={_sides(size)} is not a multiple of patch_size="
            f"{_sides(patch)}"
        )


def _sides(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else str(list(size))


def _shape(vit: Any) -> EncoderShape:
    return EncoderShape(
        grid=tuple(vit.patch_embed.grid_size),
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=vit.blocks[0].attn.num_heads,
        patch=tuple(vit.patch_embed.patch_size),
    )


__all__ = [
    "INIT_STD",
    "Encoder",
    "EncoderShape",
    "encoder_shape",
    "gather_patches",
    "initialise",
    "sincos_positions",
    "timm_arguments",
]
