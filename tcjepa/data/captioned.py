"""Whether a run that reads captions will find any: looked up before it trains without a word."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import pyarrow.compute as pc

from pipeline.schema import score_column
from pipeline.settings import ConfigError
from tcjepa.data.captions import eligible
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import SampleError
from tcjepa.data.index import ShardIndex
from tcjepa.data.reader import ShardReader

#: Images that are looked at: where 1 in 100 has a caption to read, 512 miss it once in 170 times.
_LOOKED_AT: Final = 512
_BEST: Final = 64
_CHOOSING: Final = ("caption_sources", "min_caption_quality", "min_caption_agreement")


def check_captioned(index: ShardIndex, config: DataConfig) -> None:
    """Look at some images from all over the selection: a caption of one at least is to be read.

    Those of the best scores come first. Of remote shards only the texts are fetched, until one is
    found. `caption_sources=[]` is a run without words on purpose, and passes. Raises `ConfigError`
    that says which captions there are and what leaves them out, and `ShardUnavailableError`.
    """
    if config.caption_sources == []:
        return
    if not pc.max(index.table.column("n_captions")).as_py():
        raise ConfigError(
            f"data.shards: no image that data.split and data.filter select in {config.shards} has "
            "a caption; set model.text=null for I-JEPA, or let the pipeline re-caption"
        )
    spread = np.unique(np.linspace(0, len(index) - 1, _LOOKED_AT, dtype=int)).tolist()
    rows = list(dict.fromkeys([*_best(index, config), *spread]))
    reader = ShardReader(index, config.cache_bytes)
    sources: Counter[str] = Counter()
    for row in rows:
        try:
            captions = reader.sample(row)["captions"]
        except SampleError:
            continue  # training counts these, and stops if they are too many
        if eligible(captions, config):
            return
        sources.update(caption["source"] for caption in captions)
    asked = {f"data.{name}={getattr(config, name)}" for name in _CHOOSING if getattr(config, name)}
    found = ", ".join(f"{source} ({count})" for source, count in sources.most_common(8))
    if sources:
        raise ConfigError(
            f"{' and '.join(sorted(asked))}: none of the {sources.total()} captions of "
            f"{len(rows)} images looked at is left. Their sources are {found}. To train without "
            "words on purpose, set data.caption_sources=[]"
        )


def _best(index: ShardIndex, config: DataConfig) -> list[int]:
    """Return some of the images that have the best of the scores that are asked for."""
    found: list[int] = []
    for score in ("quality", "agreement"):
        if getattr(config, f"min_caption_{score}") is not None:
            best = index.table.column(score_column(score, "best"))
            found += pc.select_k_unstable(best, _BEST, [("", "descending")]).to_pylist()
    return found
