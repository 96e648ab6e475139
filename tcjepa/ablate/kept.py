"""How much of the data an arm trains on: what its row filter and caption thresholds leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

from tcjepa.ablate.study import Trial
from tcjepa.config import TrainConfig
from tcjepa.data.captions import eligible
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader

KEPT: Final = "kept.json"
#: Names of the two readings, as reports print them [share].
IMAGES, CAPTIONS = "images kept", "captions kept"
#: Images whose captions are read for the share of captions: 0.01 is twice its standard error.
_LOOKED_AT: Final = 2000


class KeptShares:
    """Shares of the data that configs keep; each selection is counted once."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, float]] = {}

    def of(self, config: TrainConfig) -> dict[str, float]:
        """Return the share of the split's images, and of their captions from the same sources.

        Captions only if the model reads any; those of images that the filter drops count as
        dropped. Of more than 2,000 images, captions of so many evenly spaced ones are counted.
        """
        data = config.data
        selection = ("shards", "split", "filter", "caption_sources")
        thresholds = ("min_caption_quality", "min_caption_agreement")
        key = data.model_dump_json(include={*selection, *thresholds})
        if key not in self._known:
            self._known[key] = _count(data)
        found = self._known[key]
        reads = config.reads_captions and data.caption_sources != []
        return found if reads else {IMAGES: found[IMAGES]}


def _count(data: DataConfig) -> dict[str, float]:
    kept = ShardIndex.open(data)
    thresholds = (data.filter, data.min_caption_quality, data.min_caption_agreement)
    if all(threshold is None for threshold in thresholds):
        return {IMAGES: 1.0, CAPTIONS: 1.0}
    whole = ShardIndex.open(data.model_copy(update={"filter": None}))
    rows = np.unique(np.linspace(0, len(whole) - 1, _LOOKED_AT).astype(np.int64))
    passed = np.isin(whole.uid_bits()[rows], kept.uid_bits())
    lenient = data.model_copy(update={"min_caption_quality": None, "min_caption_agreement": None})
    reader = ShardReader(whole, data.cache_bytes)
    every = admitted = 0
    for row, passes in zip(rows.tolist(), passed.tolist(), strict=True):
        captions = reader.sample(row)["captions"]
        every += len(eligible(captions, lenient))
        admitted += len(eligible(captions, data)) if passes else 0
    return {IMAGES: len(kept) / len(whole), CAPTIONS: admitted / max(every, 1)}


def write(trial: Trial, shares: dict[str, float]) -> None:
    """Note the shares of a trial that is about to run."""
    (Path(trial.folder) / KEPT).write_text(json.dumps(shares) + "\n")


def read(folder: Path) -> dict[str, float]:
    """Return what `write` noted; {} if nothing."""
    path = folder / KEPT
    return dict(json.loads(path.read_text())) if path.exists() else {}


__all__ = ["CAPTIONS", "IMAGES", "KEPT", "KeptShares", "read", "write"]
