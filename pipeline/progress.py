"""Progress of long work: a bar on a terminal, an occasional line elsewhere.

Shared with `tcjepa`; needs only rich.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Count done and failed items of one piece of work, with rate and time left.

    On a terminal it draws a bar; elsewhere it prints at most one line every `every` seconds and one
    when it ends, so that a log stays readable.
    """

    def __init__(
        self, label: str, total: int, unit: str, every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit, self.every = label, total, unit, every
        self.done = self.failed = 0
        self._note = ""
        self._stream = stream or sys.stderr
        self._started = self._printed = time.monotonic()
        self._start_done = 0
        self._bar: RichProgress | None = None
        if self._stream.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(label, total=total, rate="", note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._refresh()
            self._bar.stop()
        else:
            self._print()

    def skip(self, items: int) -> None:
        """Count items that an earlier run had finished; they do not enter the rate."""
        self.done += items
        self._start_done += items
        self._refresh()

    def advance(self, items: int = 1, failed: int = 0, note: str = "") -> None:
        """Count finished items, of which `failed` failed, and show a short note."""
        self.done += items
        self.failed += failed
        self._note = note or self._note
        self._refresh()
        if not self._bar and time.monotonic() - self._printed >= self.every:
            self._print()

    @property
    def rate(self) -> float:
        """Items per second since the start of this run."""
        elapsed = time.monotonic() - self._started
        return (self.done - self._start_done) / elapsed if elapsed > 0 else 0.0

    def _suffix(self) -> str:
        failures = f"{self.failed} failed" if self.failed else ""
        return "  ".join(part for part in (failures, self._note) if part)

    def _refresh(self) -> None:
        if self._bar:
            rate = f"{self.rate:.1f} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, rate=rate, note=self._suffix())

    def _print(self) -> None:
        self._printed = time.monotonic()
        left = (self.total - self.done) / self.rate if self.rate > 0 else float("inf")
        eta = f"  {left:.0f} s left" if self.done < self.total and left < float("inf") else ""
        line = f"{self.label}: {self.done}/{self.total} {self.unit}  {self.rate:.1f}/s{eta}"
        print(f"{line}  {self._suffix()}".rstrip(), file=self._stream, flush=True)
