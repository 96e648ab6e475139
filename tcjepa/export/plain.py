"""Plain safetensors: the encoder's tensors under timm's names, and metadata to build it from."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.settings import ConfigError
from tcjepa.export.source import Source, features_of, random_images, require_same
from tcjepa.model.encoder import Encoder

FILE = "model.safetensors"


def load_encoder(path: str | Path) -> Encoder:
    """Return the encoder of a `safetensors` or `timm` export, a folder or its file, on the CPU.

    `encoder(images)` turns images (B, 3, H, H), normalised with the file's mean and std, into patch
    features (B, P, D). Raises `ConfigError` if the file is not such an export.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        encoder = Encoder(metadata["encoder"], json.loads(metadata["encoder_kwargs"]))
        encoder.vit.load_state_dict(load_file(file))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{file} is not an encoder that `tcjepa export` wrote: {error}"
        ) from error
    return encoder.eval()


def write(folder: Path, source: Source) -> None:
    """Write an encoder's tensors and metadata to a folder."""
    from safetensors.torch import save_file

    save_file(source.tensors, folder / FILE, source.metadata)


def compare(folder: Path, source: Source) -> float:
    """Return the largest difference after reloading; raises `ExportError` if there is any."""
    tokens = features_of(load_encoder(folder), random_images(source))
    return require_same(source, "safetensors", tokens, tokens.mean(1))


def usage(folder: Path) -> tuple[str, str]:
    """Return the two lines that load it."""
    return (
        "from tcjepa.export import load_encoder",
        f"encoder = load_encoder({str(folder)!r})  # (B, 3, H, H) -> patch features (B, P, D)",
    )
