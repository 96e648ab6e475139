"""The record of samples that could not be read and were replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tcjepa.data.batch import Batch

_AFTER: Final = 100


class TooManyUnreadableError(RuntimeError):
    """More samples had to be replaced than the config allows."""


class SubstitutionLedger:
    """Appends one JSON line per replaced sample and stops a run that replaces too many.

    `limit` is the allowed share of replaced samples, judged once 100 were seen. Without a path it
    only counts. Lines are short appends, so several ranks may share a file.
    """

    def __init__(self, path: Path | None, limit: float = 0.01) -> None:
        self.seen = self.replaced = 0
        self._path, self._limit = path, limit

    def record(self, batch: Batch) -> None:
        """Count a batch and write down what was replaced; raises `TooManyUnreadableError`."""
        self.seen += len(batch.captions)
        self.replaced += len(batch.replaced)
        if batch.replaced and self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                for uid, reason in batch.replaced:
                    line = {"position": batch.position, "uid": uid, "reason": reason}
                    file.write(json.dumps(line) + "\n")
        if self.seen >= _AFTER and self.replaced > self._limit * self.seen:
            last = f"; last: {batch.replaced[-1]}" if batch.replaced else ""
            raise TooManyUnreadableError(
                f"{self.replaced} of {self.seen} samples could not be read, more than "
                f"data.max_bad_share = {self._limit}{last}. See {self._path or 'Batch.replaced'}"
            )
