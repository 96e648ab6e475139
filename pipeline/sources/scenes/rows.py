"""The world as source rows: URLs of the loopback server, alt texts, and the truth as metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa

from pipeline.sources.scenes.alt_text import alt_text
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.faults import caption_fault, original, swap_partner, url_fault
from pipeline.sources.scenes.world import Scene, Split, scene, stream

HOST: Final = "127.0.0.1"

#: Columns of `rows`. The last eight are metadata: filters and scorers never read them.
SCHEMA: Final = pa.schema(
    [
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("split", pa.string()),
        ("row_error", pa.string()),
        ("annotations", pa.string()),
        ("caption_fault", pa.string()),
        ("url_fault", pa.string()),
        ("shape", pa.string()),
        ("colour", pa.string()),
        ("texture", pa.string()),
        ("background", pa.string()),
        ("n_objects", pa.int32()),
    ]
)


def rows(config: ScenesConfig) -> Iterator[dict[str, Any]]:
    """Yield one row per URL, train first, with the columns of `SCHEMA`.

    `annotations` and the labels `shape`, `colour`, `texture` (of the object with the largest
    visible area), `background` and `n_objects` tell what the image at the URL shows: for a copy the
    scene copied, for a blank image no objects and null labels. `caption_fault` speaks of the scene
    behind the URL, also where a fault of the URL hides it.
    """
    for index in range(config.train):
        yield row(config, "train", index)
    for index in range(config.test):
        yield row(config, "test", index)


def row(config: ScenesConfig, split: Split, index: int) -> dict[str, Any]:
    """Return one row, a pure function of the arguments."""
    fault = url_fault(config, split, index)
    wording = caption_fault(config, split, index)
    shown = scene(config, split, original(config, split, index))
    draw = stream(config.seed, split, index, "alt text")
    partner = swap_partner(config, shown, draw) if wording == "swapped" else None
    return {
        "url": url(config, split, index),
        "captions": alt_text(wording, shown, partner, draw),
        "split": split,
        "row_error": None,
        "caption_fault": wording,
        "url_fault": fault,
        **(_NOTHING_SHOWN if fault == "blank" else _labels(shown)),
    }


def url(config: ScenesConfig, split: Split, index: int) -> str:
    """Return the URL of a row's image."""
    return f"http://{HOST}:{config.port}{path(split, index)}"


def path(split: Split, index: int) -> str:
    """Return the path part of a row's URL."""
    return f"/{split}/{index:06d}.jpg"


def _labels(shown: Scene) -> dict[str, Any]:
    prominent = shown.prominent
    return {
        "annotations": shown.annotations(),
        "shape": prominent.shape,
        "colour": prominent.colour,
        "texture": prominent.texture,
        "background": shown.background,
        "n_objects": len(shown.objects),
    }


_NOTHING_SHOWN: Final[dict[str, Any]] = {
    "annotations": json.dumps({"background": None, "objects": [], "relations": []}),
    "shape": None,
    "colour": None,
    "texture": None,
    "background": None,
    "n_objects": 0,
}
