"""A part's tables as they are: while a run goes on, or was killed or failed, some are absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.part import Part
from pipeline.stages.task import tables_of
from pipeline.storage import Directory

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PartTables:
    """The tables that the stages have written of one part so far."""

    run: Directory
    part: Part
    #: (stage, part) -> the fingerprint that a table of today's config has; None takes any table.
    mark: Callable[[str, Part], str | None] | None = None

    def read(self, stage: str, columns: list[str] | None = None) -> pa.Table | None:
        """Return a stage's table, or those of `columns` that it has; None if there is none.

        Without `columns`, all but vectors: features are many times larger than all else. A table
        that an earlier config left, and the run will replace, counts as absent.
        """
        wanted = self.mark(stage, self.part) if self.mark else None
        tables = tables_of(self.run, stage)
        try:
            with tables.fs.open(tables.path(f"{self.part.name}.parquet"), "rb") as file:
                parquet = pq.ParquetFile(file)
                schema = parquet.schema_arrow
                if wanted and (schema.metadata or {}).get(b"fingerprint") != wanted.encode():
                    return None
                found = [f.name for f in schema if not pa.types.is_fixed_size_list(f.type)]
                if columns is not None:
                    found = [name for name in columns if name in schema.names]
                return parquet.read(columns=found, use_threads=False)
        except (OSError, pa.ArrowInvalid):  # absent, or damaged: the next run writes it again
            return None


def by_reason(reasons: pa.ChunkedArray) -> Iterator[tuple[str | None, Integers]]:
    """Yield each reason that occurs, and null, with the places (k,) where it does."""
    encoded = reasons.combine_chunks().dictionary_encode()
    codes = np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False))
    names = [*encoded.dictionary.to_pylist(), None]
    for code in np.unique(codes):
        yield names[code], np.flatnonzero(codes == code)


def flattened(lists: pa.ChunkedArray) -> tuple[pa.Array, Integers, Integers]:
    """Return a list column's elements (m,), the place (m,) of each one's row, and its number there.

    The last is 0 for the first element of a row.
    """
    column = lists.combine_chunks()
    owner = np.asarray(pc.list_parent_indices(column).to_numpy(), dtype=np.int64)
    starts = np.searchsorted(owner, owner)
    return column.flatten(), owner, np.arange(len(owner)) - starts


__all__ = ["Integers", "PartTables", "by_reason", "flattened"]
