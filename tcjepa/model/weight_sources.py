"""Published weights of a ViT encoder: from a file, a folder, timm's registry or Hugging Face's hub.

Of files, nothing is unpickled but tensors and plain values (`weights_only=True`); only a sharded
run of one's own is trusted further (see `tcjepa.train.sharded`). Nothing is downloaded unless the
name is one of a hub: a Hugging Face repository or a timm model with its pretrained tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.settings import ConfigError
from tcjepa.model.encoder import encoder_shape
from tcjepa.model.tensor_names import from_huggingface, is_huggingface, unwrapped

Tensors = dict[str, Tensor]
OpenRun = Callable[[Path], tuple[dict[str, Any], Tensors]]
"""A run directory or checkpoint file of ours -> (resolved config, tensors of the whole model)."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin")
_FORMS = (
    "a file (.safetensors, or .pt, .pth, .tar as torch saves them), a folder of Hugging Face, timm "
    "or `tcjepa export`, a run directory, a Hugging Face name such as facebook/ijepa_vith14_1k, or "
    "a timm name with its tag such as vit_huge_patch14_gap_224.in1k_ijepa"
)


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors under timm's names, and what tensors cannot tell about it."""

    origin: str
    """Where they are from, for messages."""
    encoder: Tensors
    target: Tensors | None = None
    """The target encoder's, where the source has both."""
    heads: int | None = None
    epsilon: float | None = None
    """The LayerNorms' epsilon."""
    activation: str | None = None


def read_weights(name: str, open_run: OpenRun) -> Weights:
    """Return the weights that a user named; see `_FORMS`.

    Raises `ConfigError` if there is no such thing, if it cannot be had (no network), or if it is
    not an encoder's weights.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(path, open_run)
    if path.exists():
        return _from_file(path, open_run)
    hub = name.removeprefix("hf-hub:")
    # A mistyped path looks like a hub name. A known suffix or an existing first folder tells.
    is_path = name.endswith(_SUFFIXES) or name[:1] in "./~" or Path(hub.split("/")[0]).exists()
    if hub != name or (_HUB_NAME.fullmatch(hub) and not is_path):
        from tcjepa.model.weight_downloads import hub_folder

        return replace(_from_folder(hub_folder(hub), open_run), origin=name)
    if "/" not in name and "." in name and not name.endswith(_SUFFIXES):
        from tcjepa.model.weight_downloads import timm_file

        found = timm_file(name)
        read = _from_folder if found.is_dir() else _from_file
        return replace(read(found, open_run), origin=name)
    raise ConfigError(f"model.init={name} does not exist; it may be {_FORMS}")


def _from_folder(folder: Path, open_run: OpenRun) -> Weights:
    if (folder / "checkpoints").is_dir() or folder.suffix == ".dcp":
        return _from_run(folder, open_run)
    exported = folder / "safetensors" / "model.safetensors"  # of `tcjepa export --format all`
    if exported.exists():
        return _from_file(exported, open_run)
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    tensors = _folder_tensors(folder)
    if "architecture" in config:
        arguments = {**config.get("model_args", {}), "num_classes": 0}
        try:
            heads: int | None = encoder_shape(config["architecture"], arguments).heads
        except ValueError:  # another kind of model: its tensors will say so
            heads = None
        return Weights(str(folder), unwrapped(tensors), heads=heads)
    if config.get("model_type", "ijepa") != "ijepa":
        raise ConfigError(
            f"model.init={folder} is a {config['model_type']} model; of Hugging Face's only ijepa "
            "models fit this encoder"
        )
    if not config:
        return _from_tensors(str(folder), tensors, {})
    return Weights(
        str(folder),
        from_huggingface(tensors),
        heads=config.get("num_attention_heads"),
        epsilon=config.get("layer_norm_eps"),
        activation=config.get("hidden_act"),
    )


def _folder_tensors(folder: Path) -> Tensors:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(_json(index)["weight_map"].values()))
        return {k: v for name in names for k, v in _safetensors(folder / name)[0].items()}
    if (folder / "model.safetensors").exists():
        return _safetensors(folder / "model.safetensors")[0]
    if (folder / "pytorch_model.bin").exists():
        return _tensors_of(_unpickled(folder / "pytorch_model.bin"))
    raise ConfigError(f"model.init={folder} holds no model.safetensors; it may be {_FORMS}")


def _from_file(path: Path, open_run: OpenRun) -> Weights:
    if path.suffix == ".safetensors":
        return _from_tensors(str(path), *_safetensors(path))
    content = _unpickled(path)
    if {"format", "model", "config"} <= content.keys():
        return _from_run(path, open_run)
    if isinstance(content.get("encoder"), dict):  # the original I-JEPA release
        target = content.get("target_encoder")
        return Weights(
            str(path),
            unwrapped(_tensors_of(content["encoder"])),
            unwrapped(_tensors_of(target)) if target else None,
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return _from_tensors(str(path), _tensors_of(content), {})


def _from_tensors(origin: str, tensors: Tensors, metadata: Mapping[str, str]) -> Weights:
    tensors = unwrapped(tensors)
    if is_huggingface(tensors):
        return Weights(origin, from_huggingface(tensors))
    heads = None
    if "encoder" in metadata:  # of `tcjepa export`
        heads = encoder_shape(metadata["encoder"], json.loads(metadata["encoder_kwargs"])).heads
    return Weights(origin, tensors, heads=heads)


def _from_run(path: Path, open_run: OpenRun) -> Weights:
    config, tensors = open_run(path)
    model = config["model"]
    heads = encoder_shape(model["encoder"], model["encoder_kwargs"]).heads
    encoder, target = (under(tensors, which) for which in ("encoder", "target_encoder"))
    return Weights(str(path), encoder, target or None, heads)  # a baseline has no target encoder


def under(tensors: Mapping[str, Tensor], which: str) -> Tensors:
    """Return, under timm's names, one encoder's tensors of a whole `TCJEPA`'s.

    `which` is "encoder" or "target_encoder".
    """
    prefix = f"{which}.vit."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.init: {path} is not readable: {error}") from error


def _safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"model.init: {path} is not a readable safetensors file: {error}"
        ) from error


def _unpickled(path: Path) -> dict[str, Any]:
    """Return a torch file's dict, memory-mapped: a release holds an optimizer nobody needs."""
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not mappable
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime and key errors alike
        raise ConfigError(
            f"model.init: {path} cannot be read as tensors. If it holds other Python objects it is "
            "refused, because reading those can run code; save its state dict alone with "
            f"torch.save or as safetensors. ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"model.init: {path} holds a {type(content).__name__}, not a state dict")
    return content


def _tensors_of(content: Mapping[str, Any]) -> Tensors:
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


__all__ = ["OpenRun", "Weights", "read_weights", "under"]
