"""Names of a ViT's tensors: timm's (ours), Hugging Face's `IJepaModel`, the original release's.

timm and facebookresearch/ijepa name them alike. Hugging Face files have two layouts: that of the
hub (`encoder.layer.0.attention.attention.query.weight`; what `save_pretrained` writes) and that of
the module in transformers 5 (`layers.0.attention.q_proj.weight`). Both are read, the former, which
every transformers with I-JEPA reads, is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: timm's name -> Hugging Face's, for what is outside the blocks.
_TRUNK = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
#: The same inside a block, for the hub's layout and for the module's.
_HUB_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_MODULE_BLOCK = {**_HUB_BLOCK, "attn.proj": "attention.o_proj"} | {
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HUB_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_MODULE_QKV = tuple(f"attention.{part}_proj" for part in "qkv")

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_HUGGINGFACE_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")
#: What data-parallel and compiled modules put in front of every name.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without `module.` and `_orig_mod.` in front of their names."""
    return {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}


def is_huggingface(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have Hugging Face's names."""
    return any(name.removeprefix("ijepa.").startswith("embeddings.") for name in tensors)


def to_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's tensors under the hub's names, (3D, D) query-key-value split into three.

    Raises `ValueError` for a tensor that `IJepaModel` has no place for.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        trunk, _, kind = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if name in _TRUNK:
            renamed[_TRUNK[name]] = tensor
        elif trunk in _TRUNK:
            renamed[f"{_TRUNK[trunk]}.{kind}"] = tensor
        elif block and block[2] == "attn.qkv":
            for part, piece in zip(_HUB_QKV, tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{block[1]}.{part}.{block[3]}"] = piece
        elif block and block[2] in _HUB_BLOCK:
            renamed[f"encoder.layer.{block[1]}.{_HUB_BLOCK[block[2]]}.{block[3]}"] = tensor
        else:
            raise ValueError(f"IJepaModel has no place for {name}")
    return renamed


def from_huggingface(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of `IJepaModel` under timm's names; unknown ones keep theirs."""
    trunk = {theirs: ours for ours, theirs in _TRUNK.items()}
    block = {
        theirs: ours for names in (_HUB_BLOCK, _MODULE_BLOCK) for ours, theirs in names.items()
    }
    parts = {name: index for names in (_HUB_QKV, _MODULE_QKV) for index, name in enumerate(names)}
    renamed: dict[str, Tensor] = {}
    qkv: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("ijepa.")
        owner, _, kind = bare.rpartition(".")
        found = _HUGGINGFACE_BLOCK.fullmatch(bare)
        if bare in trunk:
            renamed[trunk[bare]] = tensor
        elif owner in trunk:
            renamed[f"{trunk[owner]}.{kind}"] = tensor
        elif found and found[2] in block:
            renamed[f"blocks.{found[1]}.{block[found[2]]}.{found[3]}"] = tensor
        elif found and found[2] in parts:
            whole = f"blocks.{found[1]}.attn.qkv.{found[3]}"
            qkv.setdefault(whole, {})[parts[found[2]]] = tensor
        else:
            renamed[bare] = tensor
    for whole, pieces in qkv.items():
        # An absent piece leaves too small a tensor, which is then reported under timm's name.
        renamed[whole] = torch.cat([pieces[index] for index in sorted(pieces)])
    return renamed


__all__ = ["from_huggingface", "is_huggingface", "to_huggingface", "unwrapped"]
