"""`trace.jsonl`: which samples a step saw on which rank, and its losses to the last bit.

One line per step and rank, in that order. The ranks' readings travel to rank 0, which writes all
lines: nothing interleaves, no shared file system is needed, and equal runs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TRACE_FILE = "trace.jsonl"


@dataclass(frozen=True)
class Traced:
    """What one rank saw in one step."""

    step: int
    rank: int
    uids: tuple[str, ...]
    loss: float
    """Of this rank's share of the batch."""
    global_loss: float
    """Of the whole batch; its last bits depend on how many ranks share it."""

    def line(self) -> str:
        """Return the JSON line, losses as `float.hex` so that no bit is lost."""
        content = {
            "step": self.step,
            "rank": self.rank,
            "uids": self.uids,
            "loss": self.loss.hex(),
            "global_loss": self.global_loss.hex(),
        }
        return json.dumps(content) + "\n"


class Trace:
    """Appends to a run's trace; what an earlier process wrote past `start_step` is cut off."""

    def __init__(self, run: Path, start_step: int) -> None:
        run.mkdir(parents=True, exist_ok=True)
        path = run / TRACE_FILE
        if path.exists():
            _cut(path, start_step)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, steps: Sequence[Traced]) -> None:
        """Append the lines of some steps, sorted by step and rank, and flush them."""
        for traced in sorted(steps, key=lambda one: (one.step, one.rank)):
            self._file.write(traced.line())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(run: Path) -> list[Traced]:
    """Return a run's trace in order; a last line torn by a crash is left out."""
    traced = []
    with (run / TRACE_FILE).open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            values = json.loads(line)
            losses = (float.fromhex(values[key]) for key in ("loss", "global_loss"))
            traced.append(Traced(values["step"], values["rank"], tuple(values["uids"]), *losses))
    return traced


def _cut(path: Path, start_step: int) -> None:
    """Cut the file before its first line of `start_step` or later, or its torn last line."""
    with path.open("rb+") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] >= start_step:
                break
            end += len(line)
        file.truncate(end)


__all__ = ["TRACE_FILE", "Trace", "Traced", "read"]
