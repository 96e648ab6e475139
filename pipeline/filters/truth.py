"""Precision and recall of the filters where the truth is known: a finished run of the scenes.

    python -m pipeline.filters.truth RUN_DIRECTORY

Reads the tables `download` and `select` of a run of `source.kind: scenes` and the truth that its
rows carry as metadata. Recall is the share of what carries a fault that was refused or dropped for
any reason of its own (a caption that only went with its image is a miss). Precision is the share of
what was dropped for the fault's reasons that carries the fault, or one that shares its wording or
its look (`_KIN`); "strict" counts those as errors too. A copy is found if it or the image it is a
copy of went: which of the two is kept is a matter of size and split.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pipeline.filters.reasons import POOL_REASONS
from pipeline.part import listed
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

#: Fault of an alt text -> the reasons that name it.
CAPTION_FAULTS: Final = {
    "boilerplate": {"boilerplate", "repeated"},
    "filename": {"filename"},
    "foreign": {"not_english"},
    "short": {"too_few_words", "too_short"},
    "keywords": {"keywords"},
}
#: Fault of a URL -> the reasons that name it, of a failed fetch or of a dropped image.
URL_FAULTS: Final = {
    "not_found": {"not_found"},
    "gone": {"gone"},
    "forbidden": {"forbidden"},
    "html": {"not_an_image"},
    "truncated": {"truncated"},
    "noai": {"opted_out"},
    "tiny": {"too_small", "too_few_pixels"},
    "extreme_aspect": {"too_elongated"},
    "blank": {"blank", "low_entropy"},
}
COPIES: Final = {"duplicate": "exact_duplicate", "near_duplicate": "near_duplicate"}

# Faults that fit another fault's reasons by their nature: a short alt text such as "photo" is the
# boilerplate of galleries, and the boilerplate "Advertisement" is short.
_KIN: Final = {"boilerplate": {"short"}, "short": {"boilerplate"}}


@dataclass(frozen=True)
class Finding:
    """How one fault fared. Counts, and shares in [0, 1]; 1 where there was nothing to find."""

    fault: str
    present: int
    caught: int
    dropped: int
    right: int
    strict: int

    @property
    def recall(self) -> float:
        """Share of what has the fault that was caught."""
        return self.caught / self.present if self.present else 1.0

    @property
    def precision(self) -> float:
        """Share of what was dropped for the fault that has it or its kin."""
        return self.right / self.dropped if self.dropped else 1.0

    @property
    def strict_precision(self) -> float:
        """Share of what was dropped for the fault that has it."""
        return self.strict / self.dropped if self.dropped else 1.0


def findings(run: Directory) -> list[Finding]:
    """Return how every fault of the scenes fared in a run; raises `FileNotFoundError` early on."""
    rows = list(_rows(run))
    captions = [
        (row["meta.caption_fault"], reason)
        for row in rows
        for reason in row["caption_reasons"] or ()
    ]
    found = [_finding(fault, reasons, captions) for fault, reasons in CAPTION_FAULTS.items()]
    # An empty alt text is no caption, so it is told by rows that have none.
    silent = [
        (row["meta.caption_fault"], None if row["captions"] else "none")
        for row in rows
        if row["split"] == "train"
    ]
    found.append(_finding("empty", {"none"}, silent))
    fates = [(row["meta.url_fault"], row["reason"]) for row in rows]
    found += [_finding(fault, reasons, fates) for fault, reasons in URL_FAULTS.items()]
    return found + [_copies(fault, reason, rows) for fault, reason in COPIES.items()]


def sound_loss(run: Directory) -> tuple[int, int]:
    """Return (dropped, all) of the alt texts that say only true things."""
    own = [
        reason
        for row in _rows(run)
        if row["meta.caption_fault"] == "right"
        for reason in row["caption_reasons"] or ()
    ]
    return sum(reason is not None and reason not in POOL_REASONS for reason in own), len(own)


def table(found: list[Finding]) -> str:
    """Return the findings as a Markdown table."""
    lines = [
        "| fault | present | recall | dropped for it | precision | strict precision |",
        "|---" * 6 + "|",
    ]
    for item in found:
        lines.append(
            f"| {item.fault} | {item.present} | {item.recall:.3f} | {item.dropped} "
            f"| {item.precision:.3f} | {item.strict_precision:.3f} |"
        )
    return "\n".join(lines)


def _rows(run: Directory) -> Iterator[dict[str, Any]]:
    """Yield every source row with its truth, and what became of it and of its captions."""
    truth = ["meta.caption_fault", "meta.url_fault", "meta.annotations"]
    for part in listed(run):
        name = f"{part.name}.parquet"
        columns = ["row", "uid", "reason", "split", "captions", *truth]
        outcome = tables_of(run, "download").read_table(name, columns).to_pylist()
        columns = ["row", "reason", "representative", "caption_reasons"]
        selected = tables_of(run, "select").read_table(name, columns).to_pylist()
        verdicts = {row["row"]: row for row in selected}
        for row in outcome:
            verdict = verdicts.get(row["row"], {})
            yield {
                "representative": None,
                "caption_reasons": None,
                **row,
                **verdict,
                "reason": row["reason"] or verdict.get("reason"),
            }


def _finding(fault: str, reasons: set[str], judged: list[tuple[str, str | None]]) -> Finding:
    own = [reason for truth, reason in judged if truth == fault]
    caught = sum(reason is not None and reason not in POOL_REASONS for reason in own)
    dropped = [truth for truth, reason in judged if reason in reasons]
    kin = {fault, *_KIN.get(fault, ())}
    right = sum(truth in kin for truth in dropped)
    return Finding(fault, len(own), caught, len(dropped), right, dropped.count(fault))


def _copies(fault: str, reason: str, rows: list[dict[str, Any]]) -> Finding:
    """Judge copies by the scene they show, which `annotations` tell apart."""
    shown = {row["uid"]: row["meta.annotations"] for row in rows if row["uid"]}
    # That a near-duplicate of the same scene was kept is not the fault of an exact copy.
    ignored = "near_duplicate" if fault == "duplicate" else None
    own = [row for row in rows if row["uid"] and row["meta.url_fault"] != ignored]
    present = Counter(row["meta.annotations"] for row in own)
    kept = Counter(row["meta.annotations"] for row in own if row["reason"] is None)
    copies = [
        row
        for row in own
        if row["meta.url_fault"] == fault and present[row["meta.annotations"]] > 1
    ]
    missed = sum(row["reason"] is None and kept[row["meta.annotations"]] > 1 for row in copies)
    dropped = [row for row in rows if row["reason"] == reason]
    # A copy of the same bytes leads itself to no other uid: it is right by its uid.
    right = sum(
        shown[row["representative"] or row["uid"]] == row["meta.annotations"] for row in dropped
    )
    return Finding(fault, len(copies), len(copies) - missed, len(dropped), right, right)


def main() -> None:
    """Print the tables for a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="run directory of a finished run of the scenes")
    run = Directory(parser.parse_args().run)
    print(table(findings(run)))
    lost, right = sound_loss(run)
    print(f"\nright alt texts dropped: {lost} of {right}")


if __name__ == "__main__":
    main()
