"""Published weights by name: fetched once into the caches that timm and Hugging Face use too."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.request
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pipeline.settings import ConfigError

#: A server that sends nothing for longer is given up [s].
_SILENCE: Final = 60.0
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def hub_folder(name: str) -> Path:
    """Return the local folder of a Hugging Face repository `owner/name[@revision]`.

    Downloads what the cache lacks of its config and its safetensors. Raises `ConfigError` if the
    hub has no such repository or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")

    def fetch(file: str) -> Path:
        get = partial(hf_hub_download, repository, file, revision=revision or None)
        try:  # the cache first: its client would ask the hub, and retry for 20 s without one
            return Path(get(local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(get())

    try:
        config = fetch("config.json")
        try:
            fetch(_WEIGHTS)
        except EntryNotFoundError:  # in several files, or, with no network, not in the cache
            parts = json.loads(fetch(_INDEX).read_text())["weight_map"].values()
            for part in sorted(set(parts)):
                fetch(part)
    except Exception as error:  # its client raises OS, HTTP-library, value and own errors
        raise _unavailable(name, error, "HF_HOME") from error
    return config.parent


def timm_file(name: str) -> Path:
    """Return the local file or folder of a timm model with pretrained tag, `model.tag`.

    Downloads what the cache lacks. Raises `ConfigError` if timm knows no such weights or they
    cannot be fetched.
    """
    import timm

    try:
        config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        config, reason = None, str(error)
    else:
        reason = "it has no file to download"
    if config is not None and config.hf_hub_id:
        return hub_folder(config.hf_hub_id)
    if config is None or not config.url or config.custom_load:
        known = [known for known in timm.list_pretrained() if known.endswith("ijepa")]
        raise ConfigError(
            f"model.init={name} is neither a file nor weights that timm can name ({reason}); its "
            f"I-JEPA ones are {', '.join(known)}"
        )
    return _download(name, config.url)


def _download(name: str, url: str) -> Path:
    """Return a URL's file in torch hub's cache, where timm too looks for it."""
    import torch.hub
    from filelock import FileLock

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlsplit(url).path).name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # one rank of a node downloads, the others wait
        if not path.exists():
            try:
                _fetch(url, path)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                raise _unavailable(name, error, "TORCH_HOME") from error
    return path


def _fetch(url: str, path: Path) -> None:
    """Download to a file beside `path`, which gets its name only if all announced bytes came.

    `torch.hub.download_url_to_file` takes a connection that ends early for the end of the file.
    """
    part = path.with_name(f"{path.name}.partial")
    request = urllib.request.Request(url, headers={"User-Agent": "tcjepa"})
    try:
        with urllib.request.urlopen(request, timeout=_SILENCE) as answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        announced, size = answer.headers.get("Content-Length"), part.stat().st_size
        if announced is not None and int(announced) != size:
            raise OSError(f"{size} of the file's {announced} bytes came.")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _unavailable(name: str, error: Exception, cache: str) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"model.init={name} cannot be downloaded: {reason} Check the name and the network; without "
        "one, download it elsewhere and set model.init to the file or folder, or set "
        f"{cache} to a cache that has it"
    )


__all__ = ["hub_folder", "timm_file"]
