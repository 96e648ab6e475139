"""What can be said of a model before any work: packages, folder, kind. No weights are read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pipeline.settings import ConfigError

_TOWERS = ("get_image_features", "get_text_features")


def check_packages(key: str) -> None:
    """Raise `ConfigError` if a package that models need is missing; `key` names who needs it."""
    for package, module in (
        ("torch", "torch"),
        ("transformers", "transformers"),
        ("pillow", "PIL"),
    ):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{key}: needs {package}: pip install torch transformers pillow")


def check_folder(key: str, name: str) -> Path | None:
    """Return the model's folder, or None for a hub name, which can't be checked without loading.

    Raises `ConfigError` if `name` looks like a folder and is none, or holds no config.json.
    """
    looks_local = name.startswith(("/", ".", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise ConfigError(
            f"{key}.model: folder {name} does not exist; give a folder that holds config.json and "
            "weights, or a hub name"
        )
    if not folder.is_dir():
        return None
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{key}.model: folder {name} has no config.json; save the model and its processor "
            "there with save_pretrained"
        )
    return folder


def check_dual_encoder(key: str, name: str) -> None:
    """Raise `ConfigError` unless `name` can be a model with an image and a text tower."""
    check_packages(key)
    folder = check_folder(key, name)
    if folder is not None:
        model = _model_class(key, folder)
        if not all(hasattr(model, tower) for tower in _TOWERS):
            raise ConfigError(
                f"{key}.model: {name} holds a {model.__name__}, which has no two towers; give a "
                "CLIP-like model such as openai/clip-vit-base-patch32"
            )


def check_text_encoder(key: str, name: str) -> None:
    """Raise `ConfigError` unless `name` can be a model of text."""
    check_packages(key)
    folder = check_folder(key, name)
    if folder is not None:
        _model_class(key, folder)


def _model_class(key: str, folder: Path) -> Any:
    from transformers import MODEL_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        found = MODEL_MAPPING[type(config)]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{key}.model: {folder} holds no model that transformers knows ({first_line(error)})"
        ) from error
    return found[0] if isinstance(found, tuple) else found


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
