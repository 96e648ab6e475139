"""What there is to show of the rows and captions that were picked as examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.fates import Fates
from pipeline.report.meanings import is_takedown
from pipeline.report.measures import (
    CAPTION,
    IMAGE,
    SCORE,
    caption_measures,
    deciding,
    image_measures,
    number,
)
from pipeline.report.parts import PartTables
from pipeline.report.picks import ALT_TEXT, DROPPED, FAILED, KEPT, WRITTEN, Pick
from pipeline.schema import ALT_TEXT as ALT_SOURCE
from pipeline.schema import SCORES

_IMAGE_COLUMNS = ["raw", "image_offset", "image_size"]
_COLUMNS = ["row", "uid", "url", "split", "captions", *_IMAGE_COLUMNS]
_GROUP = tuple[str, str]


@dataclass(frozen=True)
class ExampleCaption:
    """A caption as it is in the tables, unescaped; no scores where none were computed."""

    text: str
    source: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Example:
    """One row, or one caption of it, that a reason (or keeping) befell. Texts are unescaped.

    `finding` says what was measured and what the config asks for; empty where no number decided.
    `image` is a one-row table for `read_images`; None where nothing was fetched. `copy_of` is the
    uid of the image that a duplicate is a copy of, `original` that image if it is another file.
    """

    row: int
    uid: str | None = None
    url: str = ""
    captions: tuple[ExampleCaption, ...] = ()
    finding: str = ""
    image: pa.Table | None = None
    copy_of: str | None = None
    original: pa.Table | None = None


def read_examples(
    tables: list[PartTables], fates: Fates, config: dict[str, Any]
) -> dict[_GROUP, list[Example]]:
    """Return the examples of every group, in the order of their hashes; reads only their parts.

    Of what was taken down, and of its copies, nothing is given but the row.
    """
    picks = fates.picks
    found: dict[_GROUP, list[tuple[Pick, Example]]] = {}
    for part in tables:
        for group, pick, example in _examples_of(part, picks.of_part(part.part.name), config):
            found.setdefault(group, []).append((pick, example))
    pairs = [pair for group in found.values() for pair in group]
    copies = {e.copy_of for _, e in pairs if e.copy_of and e.copy_of != e.uid}
    originals = _images(tables, copies)
    return {
        group: [
            Example(example.row)
            if is_takedown(group[1]) or {example.uid, example.copy_of} & fates.taken_down
            else replace(example, original=originals.get(example.copy_of or ""))
            for _, example in sorted(pairs, key=lambda pair: pair[0])
        ]
        for group, pairs in found.items()
    }


def _images(tables: list[PartTables], uids: set[str]) -> dict[str, pa.Table]:
    """Return where the images of some uids are stored, as one-row tables for `read_images`."""
    found: dict[str, pa.Table] = {}
    for part in tables:
        if len(found) == len(uids):
            break
        table = part.read("download", ["uid", *_IMAGE_COLUMNS])
        if table is None:
            continue
        rows = table.filter(pc.is_in(table["uid"], value_set=pa.array(sorted(uids), pa.string())))
        for place, uid in enumerate(rows["uid"].to_pylist()):
            found.setdefault(uid, rows.slice(place, 1).select(_IMAGE_COLUMNS))
    return found


def _examples_of(
    tables: PartTables, picked: list[tuple[_GROUP, Pick]], config: dict[str, Any]
) -> list[tuple[_GROUP, Pick, Example]]:
    rows = sorted({pick.row for _, pick in picked})
    if not rows:
        return []
    sources = {row["row"]: row for row in _rows(tables, "download", rows, _COLUMNS)}
    scored = {row["row"]: row["captions"] for row in _rows(tables, "score", rows, None)}
    verdicts = {
        row["row"]: row["caption_reasons"]
        for row in _rows(tables, "choose", rows, ["row", "caption_reasons"])
    }
    written = _written(tables, [source["uid"] for source in sources.values() if source["uid"]])
    copies = {
        row["row"]: row["representative"]
        for row in _rows(tables, "select", rows, ["row", "representative"])
    }
    measured = _Measured(tables, rows, config)
    result = []
    for group, pick in picked:
        source = sources.get(pick.row)
        if source is None:
            continue
        kind, reason = group
        late = written.get(source["uid"]) if pick.origin == "recaption" else scored.get(pick.row)
        if kind == KEPT:  # those that end in a shard
            pairs = zip(late or [], verdicts[pick.row], strict=True)
            late = [caption for caption, verdict in pairs if verdict is None]
        captions = _captions(pick, kind, source, late or [])
        finding = measured.finding(kind, reason, pick, captions)
        image = None
        if source.get("image_offset") is not None and kind != FAILED:
            image = pa.table({name: [source[name]] for name in _IMAGE_COLUMNS})
        copy = copies.get(pick.row) if kind == DROPPED else None
        example = Example(
            pick.row, source["uid"], source["url"] or "", captions, finding, image, copy
        )
        result.append((group, pick, example))
    return result


def _captions(
    pick: Pick, kind: str, source: dict[str, Any], scored: list[dict[str, Any]]
) -> tuple[ExampleCaption, ...]:
    if kind == KEPT or pick.origin in ("score", "recaption"):
        captions = [
            ExampleCaption(
                caption["text"],
                caption["source"],
                {name: caption[name] for name in SCORES if caption.get(name) is not None},
            )
            for caption in scored
        ]
    else:
        texts = source["captions"] or []
        captions = [ExampleCaption(text or "", ALT_SOURCE, {}) for text in texts]
    if pick.caption >= 0:
        captions = captions[pick.caption : pick.caption + 1]
    return tuple(captions)


class _Measured:
    """The measures of a part's picked rows, looked up by row and caption."""

    def __init__(self, tables: PartTables, rows: list[int], config: dict[str, Any]) -> None:
        self.config = config
        self.images: dict[str, dict[int, float]] = {}
        self.captions: dict[str, dict[tuple[int, int], float]] = {}
        table = tables.read("filter")
        if table is None:
            return
        table = table.filter(pc.is_in(table["row"], value_set=pa.array(rows, pa.int64())))
        own = table["row"].to_pylist()
        for measure, values in image_measures(table):
            self.images[measure.name] = dict(zip(own, values.tolist(), strict=True))
        if "captions" in table.column_names and len(table):
            lists = table["captions"].combine_chunks()
            keys = [
                (row, place)
                for row, length in zip(own, lists.value_lengths().to_pylist(), strict=True)
                for place in range(length or 0)
            ]
            for measure, values in caption_measures(lists.flatten()):
                self.captions[measure.name] = dict(zip(keys, values.tolist(), strict=True))

    def finding(
        self, kind: str, reason: str, pick: Pick, captions: tuple[ExampleCaption, ...]
    ) -> str:
        """Return what was measured and asked for, such as `shorter side 40 px, at least 64`."""
        if kind not in (DROPPED, ALT_TEXT, WRITTEN):
            return ""
        late = pick.origin == "score"
        level = IMAGE if kind == DROPPED else SCORE if late else CAPTION
        measure = deciding(reason, level)
        if measure is None:
            return ""
        if level == IMAGE:
            value = self.images.get(measure.name, {}).get(pick.row)
        elif late:
            value = captions[0].scores.get(measure.name) if captions else None
        else:
            value = self.captions.get(measure.name, {}).get((pick.row, pick.caption))
        if value is None or np.isnan(value):
            return ""
        unit = f" {measure.unit}" if measure.unit else ""
        label = measure.label[0].lower() + measure.label[1:]
        text = f"{label} {number(value)}{unit}"
        # Two thresholds may guard one measure: the broken one is told, with the value beside it.
        broken = [
            str(limit)
            for limit in measure.thresholds(self.config)
            if (value < limit.value) == limit.is_minimum and value != limit.value
        ]
        return ", ".join([text, *broken])


def _written(tables: PartTables, uids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return what captioners wrote for some images."""
    table = tables.read("recaption", ["uid", "captions"])
    if table is None:
        return {}
    own = table.filter(pc.is_in(table["uid"], value_set=pa.array(uids, pa.string())))
    return {row["uid"]: row["captions"] or [] for row in own.to_pylist()}


def _rows(
    tables: PartTables, stage: str, rows: list[int], columns: list[str] | None
) -> list[dict[str, Any]]:
    table = tables.read(stage, columns)
    if table is None or "row" not in table.column_names:
        return []
    chosen = table.filter(pc.is_in(table["row"], value_set=pa.array(rows, pa.int64())))
    return list(chosen.to_pylist())


__all__ = ["Example", "ExampleCaption", "read_examples"]
