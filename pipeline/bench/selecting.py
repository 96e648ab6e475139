"""What re-selecting with new thresholds costs: rows per second, at n rows and at ten times n.

    python -m pipeline.bench.selecting [--rows 100000]

The measures are made up: 10,000 rows a part, 1.3 alt texts a row, of which most are distinct, 3%
exact and 3% near copies, images of the sizes that img2dataset stores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.filters.config import FilterConfig
from pipeline.filters.image import COLOUR_BYTES
from pipeline.filters.keys import uid_texts
from pipeline.filters.measures import CAPTION_MEASURES, binary_array
from pipeline.filters.near_texts import SIGNATURE_BYTES
from pipeline.settings import build
from pipeline.stages.filter import SCHEMA
from pipeline.stages.select import select
from pipeline.stages.task import Task, tables_of
from pipeline.storage import Directory
from pipeline.timing import Bench, Case, measure

_PART = 10_000
_COPIES = 0.03
_WORDS = ("red", "dog", "on", "a", "beach", "with", "old", "street", "in", "the", "blue", "boat")


def bench_selecting(rows: int, rounds: int) -> Bench:
    """Compare selecting from `rows` rows and from ten times as many, in rows per second.

    A ratio of 1 is linear time; 10.5 times the time for ten times the rows is a ratio of 0.95.
    """
    folder = Path(tempfile.mkdtemp(prefix="tcjepa-selecting-"))
    try:
        cases = []
        for count in (rows, 10 * rows):
            run = Directory(folder / str(count))
            parts = write_measures(run, count)
            cases.append(Case(f"select from {count:,} rows", _selecting(run, parts, count)))
        return measure(
            "re-selecting", "rows per CPU second", cases, rounds,
            baseline=cases[0].name, clock=time.process_time,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_measures(run: Directory, rows: int, part_rows: int = _PART) -> list[str]:
    """Write made-up download and filter tables of `rows` rows; returns the names of the parts."""
    generator = np.random.Generator(np.random.Philox(key=0))
    uids = generator.integers(0, 2**64, (rows, 2), dtype=np.uint64)
    phash = generator.integers(0, 2**64, rows, dtype=np.uint64)
    colours = generator.integers(0, 256, (rows, COLOUR_BYTES), dtype=np.uint8)
    draw = generator.random(rows)
    original = generator.integers(0, rows, rows)
    exact, near = draw < _COPIES, (draw >= _COPIES) & (draw < 2 * _COPIES)
    uids[exact], phash[exact], colours[exact] = (
        values[original[exact]] for values in (uids, phash, colours)
    )
    phash[near], colours[near] = phash[original[near]] ^ np.uint64(5), colours[original[near]]
    names = []
    for number, start in enumerate(range(0, rows, part_rows)):
        names.append(f"{number:05d}")
        span = slice(start, min(start + part_rows, rows))
        part = np.random.Generator(np.random.Philox(key=number + 1))
        measures = _measures(part, start, uids[span], phash[span], colours[span])
        tables_of(run, "filter").write_table(f"{names[-1]}.parquet", measures)
        tables_of(run, "download").write_table(f"{names[-1]}.parquet", _outcome(part, measures))
    return names


def _selecting(run: Directory, parts: list[str], rows: int) -> Callable[[], int]:
    rules = {"caption": {"min_words": 4}, "image": {"min_side": 250}}

    def again() -> int:
        select(Task(run, "select", "mark"), parts, build(FilterConfig, rules))
        return rows

    return again


def _measures(
    generator: np.random.Generator,
    start: int,
    uids: np.ndarray,
    phash: np.ndarray,
    colours: np.ndarray,
) -> pa.Table:
    count = len(uids)
    width, height = generator.integers(100, 1000, (2, count))
    lengths = generator.choice([0, 1, 2, 3], count, p=[0.05, 0.7, 0.15, 0.1])
    total = int(lengths.sum())
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    captions = {
        "characters": generator.integers(3, 200, total),
        "words": generator.integers(1, 30, total),
        "language": pa.array(["en"] * total),
        "language_score": np.ones(total),
        "english_score": generator.random(total),
        "symbol_share": generator.random(total) / 3,
        "repetition": generator.random(total) / 2,
        "keyword_share": generator.random(total) / 1.3,
        "caption_key": generator.integers(0, 40 * count, total, dtype=np.uint64),
    }
    for field in CAPTION_MEASURES:
        if field.name not in captions:
            shares = pa.types.is_floating(field.type)
            captions[field.name] = pa.nulls(total, field.type) if shares else np.zeros(total, bool)
    structs = pa.StructArray.from_arrays(
        [pa.array(captions[field.name], type=field.type) for field in CAPTION_MEASURES],
        fields=list(CAPTION_MEASURES),
    )
    signatures = generator.integers(0, 256, (total, SIGNATURE_BYTES), dtype=np.uint8)
    columns = {
        "row": np.arange(start, start + count),
        "uid": uid_texts(uids),
        "split": np.where(generator.random(count) < 0.01, "test", "train"),
        "decode_error": pa.nulls(count, pa.string()),
        "width": width,
        "height": height,
        "pixels": width * height,
        **{name: generator.random(count) * 100 for name in ("contrast", "sharpness")},
        "entropy": generator.random(count) * 8,
        "grey_share": generator.random(count),
        "animated": generator.random(count) < 0.001,
        "phash": phash,
        "colours": binary_array(colours),
        "captions": pa.ListArray.from_arrays(offsets, structs),
        "signatures": pa.ListArray.from_arrays(offsets, binary_array(signatures)),
    }
    arrays = [_column(columns[field.name], field.type) for field in SCHEMA]
    return pa.table(arrays, schema=SCHEMA)


def _column(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, type=kind)


def _outcome(generator: np.random.Generator, measures: pa.Table) -> pa.Table:
    """Return what `select` reads of a download table: no reason, and texts of five to ten words."""
    lists = measures["captions"].combine_chunks()
    words = np.array(_WORDS)[generator.integers(0, len(_WORDS), (len(lists.flatten()), 7))]
    texts = [" ".join(line) for line in words.tolist()]
    return pa.table(
        {
            "reason": pa.nulls(len(measures), pa.string()),
            "captions": pa.ListArray.from_arrays(lists.offsets, pa.array(texts, pa.string())),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    print(bench_selecting(parser.parse_args().rows, rounds=3).table())
