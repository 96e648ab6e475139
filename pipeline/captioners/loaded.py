"""The models that a process holds: as many as its config has captioners of them, if they fit."""

from __future__ import annotations

import logging
import threading
from typing import Final

from pipeline.captioners.vision_language import VisionLanguageModel
from pipeline.device_errors import out_of_memory, release_memory

log = logging.getLogger(__name__)

_Key = tuple[str, str, str, str | None]  # name, dtype, device, revision


class _Held:
    """The models, the one used last at the end, and for how many there is room."""

    def __init__(self) -> None:
        self.models: dict[_Key, VisionLanguageModel] = {}
        self.room = 1
        self.lock = threading.Lock()

    def drop(self, most: int) -> None:
        """Forget the models used longest ago, until at most `most` are left."""
        before = len(self.models)
        while len(self.models) > most:
            del self.models[next(iter(self.models))]
        if len(self.models) < before:
            release_memory()


_HELD: Final = _Held()


def hold_models(count: int) -> None:
    """Let this process keep `count` models, for captioners that are asked in turn."""
    with _HELD.lock:
        _HELD.room = max(1, count)
        _HELD.drop(_HELD.room)


def load_model(
    name: str, dtype: str, device: str, revision: str | None = None
) -> VisionLanguageModel:
    """Return a model of this process, loading it if it is none of those used last.

    As many are kept as `hold_models` said, if memory has room for them. One that has to go does so
    before the new one comes: together they may not fit.
    Raises `ConfigError` if `name` is not to be had or is no image-to-text model.
    """
    key = (name, dtype, device, revision)
    with _HELD.lock:
        model = _HELD.models.pop(key, None)
        if model is None:
            _HELD.drop(_HELD.room - 1)
            model = _load(key)
        _HELD.models[key] = model
        return model


def _load(key: _Key) -> VisionLanguageModel:
    try:
        return VisionLanguageModel(*key)
    except Exception as error:
        if not _HELD.models or not out_of_memory(error):
            raise
    # Not while the error is handled: its traceback holds on to the memory.
    log.warning("no memory for one more model: %s is loaded alone", key[0])
    _HELD.drop(0)
    return VisionLanguageModel(*key)


def drop_other_models(model: VisionLanguageModel) -> bool:
    """Forget all models of this process but one; return whether there were others.

    Their memory is free after `release_memory`.
    """
    with _HELD.lock:
        others = [key for key, held in _HELD.models.items() if held is not model]
        for key in others:
            del _HELD.models[key]
    return bool(others)


def forget_models() -> None:
    """Forget all models of this process, whose device is lost; leaves the device alone."""
    with _HELD.lock:
        _HELD.models.clear()


__all__ = ["drop_other_models", "forget_models", "hold_models", "load_model"]
