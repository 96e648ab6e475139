"""Classes of images: columns of the shard index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.schema import META_PREFIX
from pipeline.settings import ConfigError
from tcjepa.data.index import ShardIndex


class Labels:
    """The class numbers of every row of an index, and what they stand for.

    `classes` has, for each label in the order given, its distinct values in ascending order; a
    class's number is its place there. A label is a column of the index, with or without `meta.`.
    Raises `ConfigError` for a column that is missing, holds no classes or fewer than two, or has no
    value for some image: leaving images out silently would train on other data than was asked for.
    """

    def __init__(self, index: ShardIndex, names: Sequence[str]) -> None:
        self.classes: dict[str, list[str]] = {}
        columns = []
        for name in names:
            values, numbers = _classes(index.table, name, "train.labels")
            self.classes[name.removeprefix(META_PREFIX)] = values
            columns.append(numbers)
        self._numbers = np.stack(columns, axis=1)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of classes of each label."""
        return {name: len(values) for name, values in self.classes.items()}

    def of(self, rows: Tensor) -> Tensor:
        """Return the classes (B, K) int64 of rows (B,) of the index, on the CPU."""
        return torch.from_numpy(self._numbers[rows.numpy()].astype(np.int64))


def class_column(table: pa.Table, name: str, key: str) -> str:
    """Return the column of an index that a label names, with or without `meta.`.

    Raises `ConfigError`, which names the config key, for a column that is missing or holds nothing
    that could be classes.
    """
    own = next((n for n in (name, META_PREFIX + name) if n in table.column_names), None)
    known = f"Columns that may be labels: {', '.join(_candidates(table)) or 'none'}"
    if own is None:
        raise ConfigError(f"{key}: the shards have no column {name}. {known}")
    kind = table.column(own).type
    if not _is_classes(kind):
        raise ConfigError(f"{key}: {own} holds {kind}; classes are text or whole numbers. {known}")
    return own


def _classes(table: pa.Table, name: str, key: str) -> tuple[list[str], NDArray[np.int32]]:
    """Return a column's distinct values and the number of each row's, (rows,)."""
    own = class_column(table, name, key)
    column = table.column(own)
    if column.null_count:
        raise ConfigError(
            f"{key}: {column.null_count} of {len(column)} images have no {own}; add "
            f'"{own} is not None" to data.filter to train on the others, or leave the label out'
        )
    distinct = pc.unique(column)
    distinct = distinct.take(pc.sort_indices(distinct))
    if len(distinct) < 2:
        raise ConfigError(
            f"{key}: all {len(column)} images have the same {own}; there is nothing to learn"
        )
    numbers = pc.index_in(column, value_set=distinct).to_numpy()
    return [str(value) for value in distinct.to_pylist()], numbers


def _is_classes(kind: pa.DataType) -> bool:
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_text or types.is_integer(kind) or types.is_boolean(kind))


def _candidates(table: pa.Table) -> list[str]:
    return [
        field.name
        for field in table.schema
        if field.name.startswith(META_PREFIX) and _is_classes(field.type)
    ]


__all__ = ["Labels", "class_column"]
