"""Kept images with all their captions and a vector each: what alignment and agreement look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.schema import ALT_TEXT
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

#: A caption before it is scored.
CAPTION = pa.struct([("text", pa.string()), ("source", pa.string())])


@dataclass(frozen=True)
class Captioned:
    """n images of a part that `select` kept: row numbers in the part, uids, and captions of each.

    Captions are dicts of text and source, alt texts first, no text twice.
    """

    run: Directory
    part: str
    rows: pa.ChunkedArray
    uids: list[str]
    captions: list[list[dict[str, str]]]

    @property
    def texts(self) -> list[str]:
        """The m captions of all images, in order."""
        return [caption["text"] for captions in self.captions for caption in captions]

    @property
    def owner(self) -> NDArray[np.int64]:
        """The number (m,) of each caption's image."""
        return np.repeat(np.arange(len(self.uids)), [len(some) for some in self.captions])

    def vectors(self, stage: str, column: str) -> NDArray[np.float32]:
        """Return a vector of each image, (n, width), from a stage's table; NaN where null."""
        table = tables_of(self.run, stage).read_table(f"{self.part}.parquet", ["row", column])
        found = table[column].take(pc.index_in(self.rows, table["row"].combine_chunks()))
        lists = found.combine_chunks()
        width = lists.type.list_size
        values = np.full((len(lists), width), np.nan, np.float32)
        # `flatten` leaves null lists out.
        sound = lists.is_valid().to_numpy(zero_copy_only=False)
        values[sound] = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        return values


def kept_uids(run: Directory, part: str) -> list[str]:
    """Return the uids of a part's kept images, without reading anything else."""
    selected = tables_of(run, "select").read_table(f"{part}.parquet", ["uid", "reason"])
    uids: list[str] = selected["uid"].filter(pc.is_null(selected["reason"])).to_pylist()
    return uids


def captioned(run: Directory, part: str, only: set[str] | None = None) -> Captioned:
    """Return a part's kept images with their captions; with `only`, those of these uids."""
    selected = tables_of(run, "select").read_table(f"{part}.parquet")
    kept = selected.filter(pc.is_null(selected["reason"]))
    if only is not None:
        kept = kept.filter(pc.is_in(kept["uid"], value_set=pa.array(sorted(only), pa.string())))
    uids = kept["uid"].to_pylist()
    written = _written_captions(run, part, kept["uid"].combine_chunks())
    captions = [
        _join(texts or [], written.get(uid, []))
        for uid, texts in zip(uids, kept["captions"].to_pylist(), strict=True)
    ]
    return Captioned(run, part, kept["row"], uids, captions)


def _written_captions(
    run: Directory, part: str, uids: pa.StringArray
) -> dict[str, list[dict[str, str]]]:
    table = tables_of(run, "recaption").read_table(f"{part}.parquet", ["uid", "captions"])
    table = table.filter(pc.is_in(table["uid"], value_set=uids))
    return dict(zip(table["uid"].to_pylist(), table["captions"].to_pylist(), strict=True))


def _join(alt_texts: list[str], written: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the distinct captions of an image, alt texts first."""
    distinct: dict[str, dict[str, str]] = {}
    for caption in [{"text": text, "source": ALT_TEXT} for text in alt_texts] + written:
        distinct.setdefault(caption["text"], caption)
    return list(distinct.values())
