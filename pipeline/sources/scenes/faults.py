"""What is wrong with a row: its caption's fault, its URL's fault, and the other row involved.

All are pure functions of the config and the row's number. Rows of the test split have no faults.
"""

from __future__ import annotations

import random
from typing import Final

from pipeline.settings import Settings
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.world import Scene, Split, scene, stream

#: Value of the `url_fault` column for a URL that behaves.
SOUND: Final = "none"

#: Value of the `caption_fault` column for an alt text that says only true things.
RIGHT: Final = "right"

_COPIES: Final = ("duplicate", "near_duplicate")
_SWAP_TRIES: Final = 32


def caption_fault(config: ScenesConfig, split: Split, index: int) -> str:
    """Return the kind of a row's alt text, a field name of `CaptionShares`."""
    if split == "test":
        return RIGHT
    return _pick(config.captions, stream(config.seed, split, index, "caption fault"), RIGHT)


def url_fault(config: ScenesConfig, split: Split, index: int) -> str:
    """Return how a row's URL misbehaves, a field name of `UrlFaultShares` or `SOUND`."""
    fault = _drawn_url_fault(config, split, index)
    if fault in _COPIES and original(config, split, index) == index:
        return SOUND
    return fault


def original(config: ScenesConfig, split: Split, index: int) -> int:
    """Return the scene that a row shows: its own, or for a copy that of a row with a sound URL.

    In a split too small to hold a sound URL, a copy shows its own scene (and is no copy).
    """
    if _drawn_url_fault(config, split, index) not in _COPIES:
        return index
    start = stream(config.seed, split, index, "original").randrange(config.train)
    for step in range(config.train):
        candidate = (start + step) % config.train
        if _drawn_url_fault(config, split, candidate) == SOUND:
            return candidate
    return index


def swap_partner(config: ScenesConfig, shown: Scene, draw: random.Random) -> Scene:
    """Return another scene of the split whose alt text is wrong for the scene shown.

    Its prominent object, which every alt text names, has no equal (shape and colour) in `shown`. A
    split too small to hold such a scene is left for scenes beyond its end.
    """
    things = {(o.shape, o.colour) for o in shown.objects}
    for attempt in range(1024):
        beyond = attempt >= _SWAP_TRIES or config.train < 2
        index = config.train + attempt if beyond else draw.randrange(config.train)
        other = scene(config, shown.split, index)
        prominent = other.prominent
        if index != shown.index and (prominent.shape, prominent.colour) not in things:
            return other
    raise AssertionError("1,024 scenes in a row that all feature the same object")


def _drawn_url_fault(config: ScenesConfig, split: Split, index: int) -> str:
    if split == "test":
        return SOUND
    return _pick(config.faults, stream(config.seed, split, index, "url fault"), SOUND)


def _pick(shares: Settings, draw: random.Random, otherwise: str) -> str:
    """Return a field of `shares` with the probability it holds."""
    left = draw.random()
    for name in type(shares).model_fields:
        left -= getattr(shares, name)
        if left < 0:
            return name
    return otherwise
