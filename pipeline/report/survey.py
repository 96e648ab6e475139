"""One pass over a run's tables: distributions of measures and scores, mixes, hosts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.fates import Fates
from pipeline.report.histograms import Histogram
from pipeline.report.hosts import HostCounter
from pipeline.report.measures import Measure, caption_measures, image_measures, score_measures
from pipeline.report.parts import PartTables, flattened
from pipeline.schema import ALT_TEXT

#: Names kept of a mix; the rest is counted together, so that a hostile list bounds nothing.
_MOST_NAMES = 500
_OTHER = "(other)"
_NONE = "(unknown)"


@dataclass
class Survey:
    """What the report draws; memory does not grow with rows."""

    fates: Fates
    measures: dict[Measure, Histogram] = field(default_factory=dict)
    scores: dict[tuple[Measure, bool], Histogram] = field(default_factory=dict)  # bool: alt text
    languages: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    caption_errors: Counter[str] = field(default_factory=Counter)
    captioned: int = 0
    hosts: HostCounter = field(default_factory=HostCounter)

    def add(self, tables: PartTables) -> None:
        """Count one part as far as its tables tell."""
        self.fates.add(tables)
        outcome = tables.read("download", ["url", "reason"])
        if outcome is not None:
            self.hosts.add(outcome["url"], outcome["reason"])
        measured = tables.read("filter")
        if measured is not None:
            self._add_measures(measured)
        written = tables.read("recaption", ["error"])
        if written is not None:
            self.captioned += len(written)
            _count(self.caption_errors, written["error"].drop_null())
        scored = tables.read("score", ["row", "captions"])
        if scored is not None:
            self._add_scores(scored)
        chosen = tables.read("choose", ["split", "reason", "caption_reasons"])
        if chosen is not None:
            kept = chosen.filter(pc.is_null(chosen["reason"]))
            _count(self.splits, kept["split"])
            if scored is not None:
                self._add_sources(scored, chosen)

    def _add_measures(self, table: pa.Table) -> None:
        for measure, values in image_measures(table):
            self.measures.setdefault(measure, Histogram(measure.is_share)).add(values)
        if "captions" not in table.column_names:
            return
        captions, _, _ = flattened(table["captions"])
        if not len(captions):
            return
        for measure, values in caption_measures(captions):
            self.measures.setdefault(measure, Histogram(measure.is_share)).add(values)
        _count(self.languages, captions.field("language"))

    def _add_scores(self, table: pa.Table) -> None:
        captions, _, _ = flattened(table["captions"])
        if not len(captions):
            return
        is_alt = pc.equal(captions.field("source"), ALT_TEXT)
        for alt in (True, False):
            own = captions.filter(is_alt if alt else pc.invert(is_alt))
            for measure, values in score_measures(own):
                self.scores.setdefault((measure, alt), Histogram(measure.is_share)).add(values)

    def _add_sources(self, scored: pa.Table, chosen: pa.Table) -> None:
        """Count the sources of the captions that end in a shard."""
        captions, owner, _ = flattened(scored["captions"])
        reasons, _, _ = flattened(chosen["caption_reasons"])
        if not len(captions) or len(captions) != len(reasons):
            return
        image_kept = pc.is_null(chosen["reason"].combine_chunks()).take(pa.array(owner))
        kept = pc.and_(image_kept, pc.is_null(reasons))
        _count(self.sources, captions.field("source").filter(kept))


def _count(counter: Counter[str], values: Any) -> None:
    """Add up how often each value occurs; null is `(unknown)`."""
    for entry in pc.value_counts(values).to_pylist():
        name = _NONE if entry["values"] is None else entry["values"]
        if name not in counter and len(counter) >= _MOST_NAMES:
            name = _OTHER
        counter[name] += entry["counts"]


__all__ = ["Survey"]
