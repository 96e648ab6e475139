"""What to tell a user whose split and filter leave no sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tcjepa.data.config import DataConfig
from tcjepa.data.filter import Clause, columns_of

_VALUES: Final = 8


def explain_empty(chunks: Iterable[pa.Table], clauses: list[Clause], config: DataConfig) -> str:
    """Say how many rows each clause leaves, alone and after those before it, and what there is."""
    alone = np.zeros(len(clauses), dtype=np.int64)
    after = np.zeros(len(clauses), dtype=np.int64)
    total = 0
    found: dict[str, _Values] = {}
    for chunk in chunks:
        total += chunk.num_rows
        left = chunk
        for number, clause in enumerate(clauses):
            alone[number] += chunk.filter(clause.expression).num_rows
            left = left.filter(clause.expression)
            after[number] += left.num_rows
            for name in columns_of(clause, chunk.schema):
                found.setdefault(name, _Values()).add(chunk.column(name))
    keys = "data.split and data.filter leave" if config.filter else "data.split leaves"
    if total == 0:
        return f"data.shards: the index of {config.shards} has no rows at all"
    lines = [
        f"{keys} no row of the {total} in {config.shards}:",
        *(
            f"  {clause.text}: {alone[number]} rows by itself, {after[number]} left after it"
            for number, clause in enumerate(clauses)
        ),
        "there are",
        *(f"  {name}: {values.describe()}" for name, values in found.items()),
    ]
    return "\n".join(lines)


class _Values:
    """What a column holds: the range of numbers, or the commonest of a few other values."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()
        self._low: Any = None
        self._high: Any = None
        self._nulls = 0

    def add(self, column: pa.ChunkedArray) -> None:
        self._nulls += column.null_count
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            for item in pc.value_counts(column.drop_null()).to_pylist():
                self._counts[item["values"]] += item["counts"]
            return
        low, high = pc.min_max(column).values()
        if low.is_valid:
            self._low = low.as_py() if self._low is None else min(self._low, low.as_py())
            self._high = high.as_py() if self._high is None else max(self._high, high.as_py())

    def describe(self) -> str:
        parts = [f"{value} ({count})" for value, count in self._counts.most_common(_VALUES)]
        if len(self._counts) > _VALUES:
            parts.append(f"{len(self._counts) - _VALUES} other values")
        if self._low is not None:
            parts.append(f"{self._low:g} to {self._high:g}")
        if self._nulls:
            parts.append(f"null ({self._nulls})")
        return ", ".join(parts)
