"""Rows as the filter stage measured them, and `select` run on them.

Images by letter: B is a near-duplicate of A and of C, but A and C are not near (a chain); D has
A's hash in other colours; E is too small, F undecodable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.filters.config import FilterConfig
from pipeline.filters.image import COLOUR_BYTES
from pipeline.filters.measures import IMAGE_MEASURES
from pipeline.filters.near_texts import signatures
from pipeline.stages.filter import SCHEMA
from pipeline.stages.select import select
from pipeline.stages.task import Task, is_done, tables_of
from pipeline.storage import Directory

#: letter -> (side, hash, colour)
IMAGES = {
    "A": (300, 0b0, 100),
    "B": (400, 0b1111, 105),
    "C": (300, 0b11111111, 110),
    "D": (500, 0b0, 200),
    "E": (150, 0b0, 100),
    "F": (None, None, None),
}
#: text -> reason of its own
TEXTS = {
    "a red star": None,
    "two green squares": None,
    "a blue ring": None,
    "click here for more": "boilerplate",
    "word": "too_few_words",
}
FAILED = "-"


@dataclass(frozen=True)
class Row:
    """A source row: an image by letter, or `FAILED`."""

    image: str
    captions: tuple[str, ...] = ()
    split: str = "train"
    url: str | None = None


def uid(image: str) -> str:
    return image.lower() * 32


def image_measures(image: str) -> dict[str, Any]:
    side, phash, colour = IMAGES[image]
    if side is None:
        return {**dict.fromkeys(IMAGE_MEASURES.names), "decode_error": "undecodable"}
    return {
        "decode_error": None,
        "width": side,
        "height": side,
        "pixels": side * side,
        "contrast": 50.0,
        "sharpness": 100.0,
        "entropy": 5.0,
        "grey_share": 0.1,
        "animated": False,
        "phash": phash,
        "colours": bytes([colour]) * COLOUR_BYTES,
    }


def caption_measures(text: str) -> dict[str, Any]:
    return {
        "characters": len(text),
        "words": len(text.split()),
        "language": "en",
        "language_score": 1.0,
        "english_score": 1.0,
        "symbol_share": 0.0,
        "repetition": 0.0,
        "bad_encoding": False,
        "filename_like": False,
        "url_like": False,
        "contact_like": False,
        "keyword_share": 0.0,
        "boilerplate": TEXTS[text] == "boilerplate",
        "caption_key": list(TEXTS).index(text),
        "noun_share": None,
        "verb_share": None,
        "proper_noun_share": None,
    }


def run_select(
    run: Directory, parts: list[list[Row]], config: FilterConfig
) -> tuple[list[dict[str, Any]], Any]:
    """Write the tables `select` reads, run it, and return its rows and its report."""
    number = 0
    names = [f"{index:05d}" for index in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        numbers = range(number, number + len(rows))
        number += len(rows)
        outcome = pa.table(
            {
                "reason": pa.array(
                    ["timeout" if r.image == FAILED else None for r in rows], pa.string()
                ),
                "captions": pa.array([list(r.captions) for r in rows], pa.list_(pa.string())),
                "url": pa.array([r.url for r in rows], pa.string()),
            }
        )
        tables_of(run, "download").write_table(f"{name}.parquet", outcome)
        measured = [
            {
                "row": n,
                "uid": uid(r.image),
                "split": r.split,
                **image_measures(r.image),
                "captions": [caption_measures(text) for text in r.captions],
                "signatures": [made.tobytes() for made in signatures(r.captions)],
            }
            for n, r in zip(numbers, rows, strict=True)
            if r.image != FAILED
        ]
        table = pa.Table.from_pylist(measured, schema=SCHEMA)
        tables_of(run, "filter").write_table(f"{name}.parquet", table)
    report = select(Task(run, "select", "mark"), names, config)
    assert is_done(run, "select", "all", "mark")
    found = []
    for name in names:
        assert is_done(run, "select", name, "mark")
        found += tables_of(run, "select").read_table(f"{name}.parquet").to_pylist()
    return found, report
