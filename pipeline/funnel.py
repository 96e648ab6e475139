"""Where every source row went: rows in = fetched + failed, fetched = kept + dropped.

Likewise for captions: alt texts = kept + dropped, and so for the new ones that captioners wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.part import listed
from pipeline.schema import ALT_TEXT
from pipeline.stages.failures import FAILURES
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

Funnel = dict[str, Any]
_KEPT = "kept"


@dataclass
class FunnelCount:
    """Adds up parts; memory does not grow with rows."""

    rows: int = 0
    fetched: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    alt_texts: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)

    def add_failed_part(self, rows: int) -> None:
        """Count a part that failed as a whole."""
        self.rows += rows
        self.failed["part_failed"] += rows

    def add_part(self, run: Directory, part: str) -> None:
        """Count a part whose tables are all there."""
        name = f"{part}.parquet"
        self.add_fetched(tables_of(run, "download").read_table(name, ["reason"])["reason"])
        selected = tables_of(run, "select").read_table(name, ["reason", "caption_reasons"])
        chosen = tables_of(run, "choose").read_table(name, ["row", "reason", "caption_reasons"])
        scored = tables_of(run, "score").read_table(name, ["row", "captions"])
        early_drops = _counted(selected["reason"])
        early_drops.pop(_KEPT, None)  # what `select` kept, `choose` judged once more
        self.dropped += early_drops + _counted(chosen["reason"])
        self._add_captions(selected["caption_reasons"], chosen, scored["captions"])
        self._add_lost_captions(run, name, scored)

    def add_fetched(self, reasons: pa.ChunkedArray) -> None:
        """Count a part's rows by why they could not be fetched; null for those that were."""
        counts = _counted(reasons)
        self.rows += len(reasons)
        self.fetched += counts.pop(_KEPT, 0)
        self.failed += counts

    def add_selected(self, run: Directory, part: str) -> None:
        """Count the verdicts of `select` on a part, in a run that has gone no further."""
        columns = ["reason", "caption_reasons"]
        selected = tables_of(run, "select").read_table(f"{part}.parquet", columns)
        self.dropped += _counted(selected["reason"])
        reasons = _flat(selected["caption_reasons"])
        self.alt_texts["all"] += len(reasons)
        self.alt_texts += _counted(reasons)

    def result(self) -> Funnel:
        """Return the funnel; raises `AssertionError` unless every row and caption is there."""
        kept = self.dropped[_KEPT]
        funnel = {
            "rows": self.rows,
            "fetched": self.fetched,
            "failed": _by_class(self.failed),
            "kept": kept,
            "dropped": _reasons(self.dropped),
            "captions": _captions(self.alt_texts, "alt_texts"),
            "new_captions": _captions(self.written, "written"),
        }
        check(funnel)
        return funnel

    def _add_captions(
        self, alt_reasons: pa.ChunkedArray, chosen: pa.Table, captions: pa.ChunkedArray
    ) -> None:
        judged = _flat(alt_reasons)
        self.alt_texts["all"] += len(judged)
        early = _counted(judged)
        early.pop(_KEPT, None)  # judged again below, with their images
        self.alt_texts += early
        sources = _flat(captions).field("source")
        owner = chosen["reason"].take(pa.array(_owners(captions)))
        nothing = pa.scalar(None, pa.string())
        dropped_image = pc.if_else(pc.is_valid(owner), "image_dropped", nothing)
        reasons = pc.coalesce(_flat(chosen["caption_reasons"]), dropped_image)
        is_alt = pc.equal(sources, ALT_TEXT)
        self.alt_texts += _counted(pc.filter(reasons, is_alt))
        late = _counted(pc.filter(reasons, pc.invert(is_alt)))
        self.written["all"] += sum(late.values())
        self.written += late

    def _add_lost_captions(self, run: Directory, name: str, scored: pa.Table) -> None:
        """Count what was written for images that were dropped, or said what was said before."""
        table = tables_of(run, "recaption").read_table(name, ["captions"])
        wrote = len(_flat(table["captions"]))
        sources = _flat(scored["captions"]).field("source").to_numpy(zero_copy_only=False)
        unused = wrote - int((sources != ALT_TEXT).sum())
        self.written["all"] += unused
        self.written["not_needed"] += unused


def count_so_far(run: Directory, stage: str, failed: Container[str] = ()) -> Funnel:
    """Return the funnel of a run up to `stage`, from its tables; what is left counts as kept.

    Parts that `failed`, whose tables may be of different runs, and parts without the stage's table
    count as failed.
    """
    funnel = FunnelCount()
    judged = "select" if stage in ("select", "score") else stage
    for part in listed(run):
        name = f"{part.name}.parquet"
        if part.name in failed or not tables_of(run, judged).exists(name):
            funnel.add_failed_part(part.rows)
        elif judged == "choose":
            funnel.add_part(run, part.name)
        else:
            fate = tables_of(run, "download").read_table(name, ["reason"])["reason"]
            funnel.add_fetched(fate)
            if judged == "select":
                funnel.add_selected(run, part.name)
            else:
                funnel.dropped[_KEPT] += fate.null_count
    return funnel.result()


def check(funnel: Funnel) -> None:
    """Raise `AssertionError` unless every row and every caption is accounted for."""
    failed = sum(n for reasons in funnel["failed"].values() for n in reasons.values())
    assert funnel["rows"] == funnel["fetched"] + failed, f"rows are missing: {funnel}"
    dropped = sum(funnel["dropped"].values())
    assert funnel["fetched"] == funnel["kept"] + dropped, f"images are missing: {funnel}"
    for key, total in (("captions", "alt_texts"), ("new_captions", "written")):
        captions = funnel[key]
        found = captions["kept"] + sum(captions["dropped"].values())
        assert captions[total] == found, f"captions are missing: {funnel}"


def format_funnel(funnel: Funnel) -> str:
    """Return the funnel as an indented table."""
    rows = max(funnel["rows"], 1)

    def line(indent: int, label: str, count: int) -> str:
        name = "  " * indent + label
        return f"{name:<36}{count:>12,}{100 * count / rows:>8.1f}%"

    lines = [line(0, "rows in", funnel["rows"])]
    for kind, reasons in funnel["failed"].items():
        lines += [line(1, f"failed, {reason} ({kind})", n) for reason, n in reasons.items()]
    lines.append(line(0, "fetched", funnel["fetched"]))
    lines += [line(1, f"dropped, {reason}", n) for reason, n in funnel["dropped"].items()]
    lines.append(line(0, "kept", funnel["kept"]))
    for key, total, label in (
        ("captions", "alt_texts", "alt texts"),
        ("new_captions", "written", "new captions"),
    ):
        captions = funnel[key]
        lines.append(f"{label:<36}{captions[total]:>12,}")
        lines += [f"{'  dropped, ' + r:<36}{n:>12,}" for r, n in captions["dropped"].items()]
        lines.append(f"{'  kept':<36}{captions['kept']:>12,}")
    return "\n".join(lines)


def _captions(counts: Counter[str], total: str) -> dict[str, Any]:
    reasons = Counter({reason: n for reason, n in counts.items() if reason != "all"})
    return {total: counts["all"], "kept": reasons[_KEPT], "dropped": _reasons(reasons)}


def _reasons(counts: Counter[str]) -> dict[str, int]:
    return {reason: n for reason, n in sorted(counts.items()) if n and reason != _KEPT}


def _counted(reasons: pa.Array | pa.ChunkedArray) -> Counter[str]:
    """Return how often each reason occurs; null counts as kept."""
    found = pc.value_counts(reasons).to_pylist()
    return Counter({entry["values"] or _KEPT: entry["counts"] for entry in found})


def _flat(lists: pa.ChunkedArray) -> pa.Array:
    return lists.combine_chunks().flatten()


def _owners(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return the row that each item of the lists belongs to."""
    lengths = lists.combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lengths)), lengths)


def _by_class(failed: Counter[str]) -> dict[str, dict[str, int]]:
    classes: dict[str, dict[str, int]] = {"transient": {}, "permanent": {}, "policy": {}}
    for reason, count in sorted(failed.items()):
        if count:
            classes[FAILURES[reason][0]][reason] = count
    return classes
