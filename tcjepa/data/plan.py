"""The epoch as a pure function: which row is trained at which position.

Shards are permuted, grouped into windows of neighbours, and rows are permuted inside each window.
The order depends on (selection, window, seed, epoch) and on nothing else: not on ranks, workers,
timing or where a run was resumed. Only the windows in use are held in memory.

The tail: an epoch's samples seldom fill whole global batches. `carry` lets a batch take the end of
one epoch and the beginning of the next, so every sample is trained exactly once per epoch. `drop`
ends each epoch with its last whole batch; what remains of that epoch's order is left out, and since
every epoch has an order of its own, other samples are left out each time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import ConfigError
from tcjepa import keyed

Rows: TypeAlias = NDArray[np.int64]
Tail: TypeAlias = Literal["carry", "drop"]

_VERSION: Final = 1
_WINDOWS_HELD: Final = 2


@dataclass(frozen=True)
class LoaderState:
    """Where a run is in its data: all that a resumed run needs to go on with the next sample.

    `fingerprint` (hex) names the plan, `epoch` counts finished passes, `consumed` the samples of
    the current pass that have entered an optimizer step.
    """

    fingerprint: str
    seed: int
    epoch: int
    consumed: int

    def to_dict(self) -> dict[str, int | str]:
        """Return plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoaderState:
        """Return the state that `to_dict` wrote."""
        return cls(
            fingerprint=str(data["fingerprint"]),
            seed=int(data["seed"]),
            epoch=int(data["epoch"]),
            consumed=int(data["consumed"]),
        )


class EpochPlan:
    """One epoch's order of rows; `shard_sizes` (shards,) are rows per shard in index order."""

    def __init__(self, shard_sizes: Rows, seed: int, epoch: int, window: int) -> None:
        self._key = (seed, epoch)
        self._order = keyed.permutation(keyed.key("shards", seed, epoch), len(shard_sizes))
        self._first = np.concatenate([[0], np.cumsum(shard_sizes)])  # row where a shard starts
        self._window = window
        ends = np.cumsum(shard_sizes[self._order])
        last = np.minimum(np.arange(window, len(ends) + window, window), len(ends)) - 1
        self._ends: Rows = ends[last]  # position where each window ends
        self._held: OrderedDict[int, Rows] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def window_at(self, position: int) -> int:
        """Return the number of the window that holds a position of this epoch."""
        return int(np.searchsorted(self._ends, position, side="right"))

    def shards_of(self, window: int) -> Rows:
        """Return the shard numbers of a window, in the order drawn; empty past the last."""
        return self._order[window * self._window : (window + 1) * self._window]

    def end_of(self, window: int) -> int:
        """Return the position of this epoch at which a window ends."""
        return int(self._ends[window])

    def rows(self, start: int, stop: int) -> Rows:
        """Return the rows at positions `[start, stop)` of this epoch, (stop - start,) int64."""
        parts: list[Rows] = []
        while start < stop:
            window = self.window_at(start)
            end = int(self._ends[window])
            begin = int(self._ends[window - 1]) if window else 0
            parts.append(self._rows_of(window)[start - begin : min(stop, end) - begin])
            start = min(stop, end)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _rows_of(self, window: int) -> Rows:
        if window not in self._held:
            spans = [np.arange(self._first[s], self._first[s + 1]) for s in self.shards_of(window)]
            rows = np.concatenate(spans)
            order = keyed.permutation(keyed.key("window", *self._key, window), len(rows))
            self._held[window] = rows[order]
            if len(self._held) > _WINDOWS_HELD:
                self._held.popitem(last=False)
        return self._held[window]


def samples_per_epoch(samples: int, tail: Tail, batch: int) -> int:
    """Return how many of `samples` an epoch trains in global batches of `batch`.

    Raises `ConfigError` if `drop` would leave nothing.
    """
    if tail == "carry":
        return samples
    if samples < batch:
        raise ConfigError(
            f"data.tail=drop leaves nothing: the {samples} samples that data.split and data.filter "
            f"select are less than one global batch of {batch}; use data.tail=carry or a smaller "
            "train.batch"
        )
    return samples - samples % batch


class Plan:
    """All epochs of a run: position p of the run is position p % n of epoch p // n.

    `shard_sizes` (shards,) are rows per shard and `selection` is the fingerprint of the index they
    come from. n is all rows, each exactly once per epoch, or with `tail="drop"` the largest
    multiple of the global `batch` in it. `fingerprint` (16 hex digits) names the order up to the
    seed: the selection and the window. Raises `ConfigError` if an epoch would be empty.
    """

    def __init__(
        self,
        shard_sizes: Rows,
        selection: str,
        seed: int,
        window: int,
        *,
        tail: Tail = "carry",
        batch: int = 1,
    ) -> None:
        self.seed, self.window, self.tail, self.batch = seed, window, tail, batch
        self._sizes = shard_sizes
        self._length = samples_per_epoch(int(shard_sizes.sum()), tail, batch)
        if self._length == 0:
            raise ConfigError("data.shards: there is no sample to train on")
        text = f"{_VERSION} {selection} {window}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._length

    def epoch(self, epoch: int) -> EpochPlan:
        """Return one epoch's plan; the last two asked for are kept."""
        if epoch not in self._epochs:
            self._epochs[epoch] = EpochPlan(self._sizes, self.seed, epoch, self.window)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def rows(self, start: int, stop: int) -> tuple[Rows, Rows]:
        """Return (epochs, rows) at positions `[start, stop)` of the run, each (stop - start,)."""
        epochs: list[Rows] = []
        rows: list[Rows] = []
        while start < stop:
            epoch, offset = divmod(start, self._length)
            count = min(stop - start, self._length - offset)
            rows.append(self.epoch(epoch).rows(offset, offset + count))
            epochs.append(np.full(count, epoch, dtype=np.int64))
            start += count
        if not rows:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(epochs), np.concatenate(rows)

    def shards_ahead(self, start: int, stop: int) -> list[tuple[int, int, list[int]]]:
        """Return (epoch, window, shards) of the windows that `[start, stop)` needs, and the next.

        Windows that lie wholly in a dropped tail are never needed and never returned.
        """
        found: list[tuple[int, int, list[int]]] = []
        while True:
            epoch, offset = divmod(start, self._length)
            order = self.epoch(epoch)
            window = order.window_at(offset)
            found.append((epoch, window, order.shards_of(window).tolist()))
            if start >= stop:
                return found
            start = epoch * self._length + min(order.end_of(window), self._length)

    def state(self, position: int) -> LoaderState:
        """Return the state of a run that has consumed the positions below `position`."""
        epoch, consumed = divmod(position, self._length)
        return LoaderState(self.fingerprint, self.seed, epoch, consumed)

    def position(self, state: LoaderState) -> int:
        """Return the position at which a state goes on.

        Raises `ConfigError` for another plan's state, and, where the tail is dropped, for one that
        does not lie between two global batches: no whole number of batches would be left.
        """
        if state.fingerprint != self.fingerprint:
            raise ConfigError(
                f"the checkpoint was trained on data {state.fingerprint}, this config selects "
                f"{self.fingerprint}: the shards, data.split, data.filter or data.window changed. "
                "Restore them to go on, or start a new run"
            )
        if state.seed != self.seed:
            raise ConfigError(
                f"the checkpoint's data order has seed {state.seed}, this config says {self.seed}; "
                "restore the seed to go on, or start a new run"
            )
        if self.tail == "drop" and state.consumed % self.batch:
            raise ConfigError(
                f"the checkpoint has consumed {state.consumed} samples of epoch {state.epoch}, "
                f"which are not whole global batches of {self.batch}, as data.tail=drop needs; "
                f"use a train.batch that divides {state.consumed}, or data.tail=carry"
            )
        return state.epoch * self._length + state.consumed
