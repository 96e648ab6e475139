"""Where every source row went: rows in = fetched + failed, fetched = kept + dropped."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.part import Part
from pipeline.stages.failures import FAILURES
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

Funnel = dict[str, Any]


def count_rows(run: Directory, parts: list[Part], sound: list[Part]) -> Funnel:
    """Return the funnel of a run's rows and captions.

    Parts that are not `sound` failed as a whole: their rows count as failed, reason `part_failed`.
    """
    failed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    kept = fetched = alt_texts = 0
    names = {part.name for part in sound}
    for part in parts:
        if part.name not in names:
            failed["part_failed"] += part.rows
            continue
        outcome = tables_of(run, "download").read_table(f"{part.name}.parquet", ["reason"])
        reasons = outcome["reason"].to_pylist()
        fetched += reasons.count(None)
        failed.update(reason for reason in reasons if reason)
        verdicts = final_reasons(run, part.name)
        kept += verdicts.count(None)
        dropped.update(reason for reason in verdicts if reason)
        for row in caption_reasons(run, part.name):
            alt_texts += len(row)
            captions.update(reason or "kept" for reason in row)
    captions_kept = captions.pop("kept", 0)
    return {
        "rows": sum(part.rows for part in parts),
        "fetched": fetched,
        "failed": _by_class(failed),
        "kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "captions": {
            "alt_texts": alt_texts,
            "kept": captions_kept,
            "dropped": dict(sorted(captions.items())),
        },
    }


def final_reasons(run: Directory, part: str) -> list[str | None]:
    """Return why each of a part's fetched rows was dropped; None for kept ones."""
    selected = tables_of(run, "select").read_table(f"{part}.parquet", ["row", "reason"])
    reasons = dict(zip(selected["row"].to_pylist(), selected["reason"].to_pylist(), strict=True))
    scored = tables_of(run, "score").read_table(f"{part}.parquet", ["row", "reason"])
    reasons.update(zip(scored["row"].to_pylist(), scored["reason"].to_pylist(), strict=True))
    return list(reasons.values())


def caption_reasons(run: Directory, part: str) -> list[list[str | None]]:
    """Return, per fetched row, why each of its alt texts was dropped; None for kept ones."""
    table = tables_of(run, "select").read_table(f"{part}.parquet", ["caption_reasons"])
    return list(table["caption_reasons"].to_pylist())


def check(funnel: Funnel) -> None:
    """Raise `AssertionError` unless every row and every alt text is accounted for."""
    failed = sum(n for reasons in funnel["failed"].values() for n in reasons.values())
    assert funnel["rows"] == funnel["fetched"] + failed, f"rows are missing: {funnel}"
    dropped = sum(funnel["dropped"].values())
    assert funnel["fetched"] == funnel["kept"] + dropped, f"images are missing: {funnel}"
    captions = funnel["captions"]
    total = captions["kept"] + sum(captions["dropped"].values())
    assert captions["alt_texts"] == total, f"captions are missing: {funnel}"


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
    captions = funnel["captions"]
    lines.append(f"{'alt texts':<36}{captions['alt_texts']:>12,}")
    lines += [f"{'  dropped, ' + r:<36}{n:>12,}" for r, n in captions["dropped"].items()]
    lines.append(f"{'  kept':<36}{captions['kept']:>12,}")
    return "\n".join(lines)


def _by_class(failed: Counter[str]) -> dict[str, dict[str, int]]:
    classes: dict[str, dict[str, int]] = {"transient": {}, "permanent": {}, "policy": {}}
    for reason, count in sorted(failed.items()):
        classes[FAILURES[reason][0]][reason] = count
    return classes
