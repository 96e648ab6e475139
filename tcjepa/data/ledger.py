"""The record of samples that could not be read and were replaced.

The file is also the memory of how many there were: all ranks of a run append to it, a resumed run
goes on with it, and so `data.max_bad_share` is judged over the whole run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Final, TypeAlias

from tcjepa.data.batch import Batch
from tcjepa.data.errors import TooManyUnreadableError

#: Judged as if at least so many samples had been seen: one bad sample among the first ten is no 10%
#: yet, and two are already too many for a limit of 1%.
_AT_LEAST: Final = 100

_Key: TypeAlias = tuple[int, str]


class SubstitutionLedger:
    """Appends one JSON line per replaced sample and stops a run that replaces too many.

    `limit` is the allowed share of replaced samples. With a path, `seen` and `replaced` count over
    all ranks since the run began; without one, over the batches recorded here. A line holds the
    position of the global batch, the uid and the reason. Lines of steps that a killed run did after
    its last checkpoint are not written again when these steps are repeated.

    Lines are single appends, which local file systems and Lustre keep whole; on NFS with ranks on
    several nodes lines may get lost, and the counts are then too small.
    """

    def __init__(self, path: Path | None, limit: float = 0.01) -> None:
        self.seen = self.replaced = 0
        self._path, self._limit = path, limit
        self._offset = 0  # how far the file has been read [bytes]
        self._ahead: Counter[int] = Counter()  # position -> lines of batches not recorded here yet
        self._stale: Counter[_Key] = Counter()  # lines of steps that will be repeated

    def begin(self, position: int) -> None:
        """Go on from a global position: count what the file holds of the batches before it."""
        if self._path is None:
            return
        self.seen, self.replaced, self._offset = position, 0, 0
        self._ahead.clear()
        self._stale.clear()
        self._end_torn_line(self._path)
        self._read(position, self._stale)

    def record(self, batch: Batch, size: int | None = None) -> None:
        """Count a batch and write down what was replaced; raises `TooManyUnreadableError`.

        `size` is the global batch [samples]; None: this batch is all of it.
        """
        if self._path is None:
            self.seen += len(batch.captions)
            self.replaced += len(batch.replaced)
        else:
            self.seen = batch.position + (size or len(batch.captions))
            if batch.replaced:
                self._append(batch)
                self._read(batch.position + 1, None)
            for position in [p for p in self._ahead if p <= batch.position]:
                self.replaced += self._ahead.pop(position)
        # A substitute may be unreadable too, so even a limit of 1 could be passed: it means none.
        if self._limit < 1 and self.replaced > self._limit * max(self.seen, _AT_LEAST):
            last = f"; last: {batch.replaced[-1]}" if batch.replaced else ""
            raise TooManyUnreadableError(
                f"{self.replaced} of {self.seen} samples could not be read, more than "
                f"data.max_bad_share = {self._limit} allows{last}. See "
                f"{self._path or 'Batch.replaced'}; repair the shards, or raise data.max_bad_share"
            )

    def _append(self, batch: Batch) -> None:
        assert self._path is not None
        lines = []
        for uid, reason in batch.replaced:
            if self._stale[batch.position, uid] > 0:
                self._stale[batch.position, uid] -= 1
                continue
            line = {"position": batch.position, "uid": uid, "reason": reason}
            lines.append(json.dumps(line) + "\n")
        if not lines:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            for text in lines:
                os.write(target, text.encode())  # one write a line: other ranks append as well
        finally:
            os.close(target)

    @staticmethod
    def _end_torn_line(path: Path) -> None:
        """End a line that a crash cut short, lest the next one be lost with it."""
        if path.exists() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def _read(self, position: int, stale: Counter[_Key] | None) -> None:
        """Count the lines that were added: those before a position now, later ones when due."""
        assert self._path is not None
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written, or torn by a crash: read again with the next
                self._offset += len(line)
                try:
                    entry = json.loads(line)
                    found, uid = int(entry["position"]), str(entry["uid"])
                except (ValueError, KeyError, TypeError):
                    continue  # two writes that ran into each other
                if found < position:
                    self.replaced += 1
                    continue
                self._ahead[found] += 1
                if stale is not None:
                    stale[found, uid] += 1


__all__ = ["SubstitutionLedger", "TooManyUnreadableError"]
