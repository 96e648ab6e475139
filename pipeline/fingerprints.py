"""The fingerprint of every stage's output, known before anything runs.

A fingerprint is the hash of the stage's name and version, the settings it reads, and its inputs'
fingerprints. Settings of how work is done, not what comes out (`settings.PACE`), are in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.filters.balance import concept_list
from pipeline.part import Part, fingerprint
from pipeline.settings import effective
from pipeline.stages import (
    choose,
    download,
    embed,
    filter,
    finish,
    fit,
    pack,
    recaption,
    score,
    select,
    shuffle,
)
from pipeline.stages.shuffle import PlannedShard

#: Sections of `filter` that only `choose` reads.
_LATE = {"scores", "balance"}


class Fingerprints:
    """Fingerprints of a run over `parts`: all of them, or those that are sound so far."""

    def __init__(self, config: PipelineConfig, parts: Sequence[Part]) -> None:
        self.config = config
        self.parts = list(parts)

    def download(self, part: Part) -> str:
        """What the part's images and their fate depend on."""
        inputs = [part.fingerprint, *([str(part.generation)] if part.generation else [])]
        return _mark("download", download.VERSION, self.config.download, *inputs)

    def filter(self, part: Part) -> str:
        """What the part's measures depend on."""
        read = filter.measured_settings(self.config.filter)
        read["features"] = needs_features(self.config)
        return _mark("filter", filter.VERSION, read, self.download(part))

    def embed(self, part: Part) -> str:
        """What the part's embeddings depend on."""
        return _mark("embed", embed.VERSION, self.config.embed, self.download(part))

    def recaption(self, part: Part) -> str:
        """What the part's new captions depend on."""
        read = [self.config.recaption, self.config.filter.image, filter.VERSION]
        # Of the measures only those of images, which come of the download and `filter.image`.
        inputs = [self.download(part), *self._blocked_uids]
        return _mark("recaption", recaption.VERSION, read, *inputs)

    @cached_property
    def _blocked_uids(self) -> list[str]:
        """The digest of the uids that no captions are written for; [] if there are none."""
        uids = self.config.filter.block.entries("uids")
        return [_digest(uids)] if uids else []

    @cached_property
    def select(self) -> str:
        """What the verdicts of all parts depend on."""
        read = {k: v for k, v in effective(self.config.filter).items() if k not in _LATE}
        # What the lists say counts, not where they are.
        names = type(self.config.filter.block).model_fields
        read["block"] = [_digest(self.config.filter.block.entries(name)) for name in names]
        inputs = list(map(self.filter, self.parts))
        if self.config.filter.duplicates.semantic is not None:
            inputs += map(self.embed, self.parts)
        return _mark("select", select.VERSION, read, *inputs)

    @cached_property
    def fit(self) -> str:
        """What the alignment model depends on."""
        inputs = [self.select, *map(self.recaption, self.parts)]
        if needs_embeddings(self.config):
            inputs += map(self.embed, self.parts)
        return _mark("fit", score.VERSION, fit.fit_settings(self.config.score), *inputs)

    def score(self, part: Part) -> str:
        """What the part's scores depend on."""
        inputs = [self.fit, self.recaption(part)]
        return _mark("score", score.VERSION, self.config.score, *inputs)

    @cached_property
    def choose(self) -> str:
        """What the last verdicts depend on."""
        late = {k: v for k, v in effective(self.config.filter).items() if k in _LATE}
        if self.config.filter.balance is not None:
            concepts = concept_list(self.config.filter.balance)
            late["balance"]["concepts"] = (
                None if concepts is None else _digest(concepts.to_pylist())
            )
        read = [late, self.config.pack.min_captions]
        return _mark("choose", choose.VERSION, read, *map(self.score, self.parts))

    @cached_property
    def plan(self) -> str:
        """What the order of the samples depends on."""
        return _mark("plan", shuffle.VERSION, self.config.pack, self.choose)

    def pack(self, shard: PlannedShard) -> str:
        """What a shard's bytes depend on."""
        return _mark("pack", pack.VERSION, [shard.name, shard.digest], self.choose)

    def finish(self, parts: Sequence[Part]) -> str:
        """What index, selection and funnel depend on; `parts` are all of the run's."""
        rows = [(part.name, part.rows) for part in parts]
        return _mark("finish", finish.VERSION, [rows, pack.VERSION], self.plan)


def needs_features(config: PipelineConfig) -> bool:
    """Return whether `alignment: linear` wants image features among the measures."""
    alignment = config.score.alignment
    return alignment is not None and alignment.kind == "linear"


def needs_embeddings(config: PipelineConfig) -> bool:
    """Return whether `alignment: clip` wants embeddings."""
    alignment = config.score.alignment
    return alignment is not None and alignment.kind == "clip"


def _digest(entries: list[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()


def _mark(stage: str, version: int, read: Any, *inputs: str) -> str:
    return fingerprint(stage, version, effective(read), inputs)
