"""Where the rows of a run are so far: counts by reason, and examples of each, part by part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.funnel import FunnelCount
from pipeline.part import Part
from pipeline.report.meanings import is_takedown
from pipeline.report.parts import PartTables, by_reason, flattened
from pipeline.report.picks import ALT_TEXT, DROPPED, FAILED, KEPT, WRITTEN, Picks
from pipeline.schema import ALT_TEXT as ALT_SOURCE
from pipeline.stages.failures import FAILURES

_VERDICTS = ["row", "uid", "reason", "caption_reasons"]


@dataclass
class Fates:
    """Counts and picks; memory does not grow with rows.

    `waiting` counts rows by the stage that has still to judge them. The steps over all parts move
    captions between parts, so their verdicts count once every part has them: until then the
    funnel is that of the step before.
    """

    picks: Picks
    final: FunnelCount = field(default_factory=FunnelCount)
    selected: FunnelCount = field(default_factory=FunnelCount)
    waiting: Counter[str] = field(default_factory=Counter)
    complete: bool = True  # every part has been through `choose`
    done: Counter[str] = field(default_factory=Counter)  # parts whose table is there, by stage
    taken_down: set[str] = field(default_factory=set)  # uids of images that must not be shown

    def add_failed_part(self, part: Part) -> None:
        """Count a part that failed as a whole."""
        self.final.add_failed_part(part.rows)
        self.selected.add_failed_part(part.rows)

    def add(self, tables: PartTables) -> None:
        """Count a part as far as its tables tell."""
        part = tables.part
        for stage in ("filter", "embed", "recaption"):
            self.done[stage] += tables.read(stage, []) is not None
        outcome = tables.read("download", ["row", "reason"])
        if outcome is None:
            self.complete = False
            self.selected.rows += part.rows
            self.waiting["download"] += part.rows
            return
        self.done["download"] += 1
        self._pick_rows(FAILED, part.name, outcome)
        self.selected.add_fetched(outcome["reason"])
        selected = tables.read("select", _VERDICTS)
        if selected is None:
            self.complete = False
            self.waiting["select"] += outcome["reason"].null_count
            return
        self._pick_rows(DROPPED, part.name, selected)
        self._pick_alt_texts(part.name, selected)
        self.selected.add_selected(tables.run, part.name)
        self.waiting["choose"] += selected["reason"].null_count
        self._add_chosen(tables, selected)

    def _add_chosen(self, tables: PartTables, selected: pa.Table) -> None:
        name = tables.part.name
        scored = tables.read("score", ["row", "captions"])
        self.done["score"] += scored is not None
        chosen = tables.read("choose", _VERDICTS)
        written = tables.read("recaption", ["uid"])
        if scored is None or chosen is None or written is None:
            self.complete = False
            return
        if self.complete:
            self.final.add_part(tables.run, name)
        self._pick_rows(DROPPED, name, chosen, kept=True)
        self._pick_scored(name, chosen, scored)
        self._pick_unneeded(name, written["uid"], selected, chosen)

    def funnel(self) -> dict[str, Any]:
        """Return the funnel so far, of the manifest's shape, with `waiting` rows by stage.

        Nothing is asserted: a run whose tables do not add up is what one wants to look at.
        """
        count = self.final if self.complete else self.selected
        waiting = {} if self.complete else self.waiting
        failed: dict[str, dict[str, int]] = {"transient": {}, "permanent": {}, "policy": {}}
        for reason, n in sorted(count.failed.items()):
            if n:
                failed[FAILURES[reason][0]][reason] = n
        return {
            "rows": count.rows,
            "fetched": count.fetched,
            "failed": failed,
            "kept": count.dropped["kept"] if self.complete else 0,
            "dropped": _reasons(count.dropped),
            "captions": _captions(count.alt_texts, "alt_texts"),
            "new_captions": _captions(count.written, "written"),
            "waiting": {stage: n for stage, n in sorted(waiting.items()) if n},
        }

    def _pick_rows(self, kind: str, part: str, table: pa.Table, kept: bool = False) -> None:
        rows = np.asarray(table["row"].to_numpy(), dtype=np.int64)
        for reason, places in by_reason(table["reason"]):
            if reason is not None and is_takedown(reason) and kind == DROPPED:
                self.taken_down.update(table["uid"].take(pa.array(places)).to_pylist())
            if reason is not None:
                self.picks.offer((kind, reason), part, rows[places])
            elif kept:
                self.picks.offer((KEPT, ""), part, rows[places])

    def _pick_unneeded(
        self, part: str, uids: pa.ChunkedArray, selected: pa.Table, chosen: pa.Table
    ) -> None:
        """Pick images that captions were written for before they were dropped as duplicates."""
        lost = uids.filter(pc.invert(pc.is_in(uids, value_set=chosen["uid"].combine_chunks())))
        places = pc.index_in(lost, value_set=selected["uid"].combine_chunks()).drop_null()
        rows = selected["row"].take(places)
        self.picks.offer_captions(
            (WRITTEN, "not_needed"),
            part,
            np.asarray(rows.to_numpy(), dtype=np.int64),
            np.full(len(rows), -1, dtype=np.int64),
            "recaption",
        )

    def _pick_alt_texts(self, part: str, selected: pa.Table) -> None:
        rows = np.asarray(selected["row"].to_numpy(), dtype=np.int64)
        reasons, owner, numbers = flattened(selected["caption_reasons"])
        for reason, places in by_reason(pa.chunked_array([reasons], pa.string())):
            if reason is not None:
                self.picks.offer_captions(
                    (ALT_TEXT, reason), part, rows[owner[places]], numbers[places], "download"
                )

    def _pick_scored(self, part: str, chosen: pa.Table, scored: pa.Table) -> None:
        rows = np.asarray(chosen["row"].to_numpy(), dtype=np.int64)
        reasons, owner, numbers = flattened(chosen["caption_reasons"])
        captions, _, _ = flattened(scored["captions"])
        if not len(reasons):
            return
        alt = np.array([source == ALT_SOURCE for source in captions.field("source").to_pylist()])
        for reason, places in by_reason(pa.chunked_array([reasons], pa.string())):
            if reason is None:
                continue
            for kind, own in ((ALT_TEXT, places[alt[places]]), (WRITTEN, places[~alt[places]])):
                self.picks.offer_captions(
                    (kind, reason), part, rows[owner[own]], numbers[own], "score"
                )


def _captions(counts: Counter[str], total: str) -> dict[str, Any]:
    return {total: counts["all"], "kept": counts["kept"], "dropped": _reasons(counts)}


def _reasons(counts: Counter[str]) -> dict[str, int]:
    return {r: n for r, n in sorted(counts.items()) if n and r not in ("all", "kept")}


__all__ = ["Fates"]
