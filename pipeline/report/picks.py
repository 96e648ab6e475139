"""Examples picked by hash: the same ones on every machine, from any number of rows, in one pass."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.report.parts import Integers

#: What is shown examples of: the fate of a row, or of a caption.
FAILED, DROPPED, KEPT, ALT_TEXT, WRITTEN = "failed", "dropped", "kept", "alt", "written"


@dataclass(frozen=True, order=True)
class Pick:
    """One example: a source row, or a caption: its place in the row's list in table `origin`."""

    key: int
    part: str
    row: int
    caption: int = -1
    origin: str = ""


@dataclass
class Picks:
    """The `count` rows of lowest hash of every group (kind, reason); of kept rows, `kept`."""

    count: int
    kept: int
    groups: dict[tuple[str, str], list[Pick]] = field(default_factory=dict)

    def offer(self, group: tuple[str, str], part: str, rows: Integers) -> None:
        """Offer the rows (k,) of a group (kind, reason) that a part holds."""
        self.offer_captions(group, part, rows, np.full(len(rows), -1, dtype=np.int64), "")

    def offer_captions(
        self, group: tuple[str, str], part: str, rows: Integers, numbers: Integers, origin: str
    ) -> None:
        """Offer captions of a group: their rows (k,), and their places (k,) in table `origin`."""
        count = self.kept if group[0] == KEPT else self.count
        if not count or not len(rows):
            return
        keys = mix(rows, numbers)
        lowest = np.argsort(keys, kind="stable")[:count]
        offered = [Pick(int(keys[i]), part, int(rows[i]), int(numbers[i]), origin) for i in lowest]
        held = self.groups.setdefault(group, [])
        held[:] = heapq.nsmallest(count, [*held, *offered])

    def of_part(self, part: str) -> list[tuple[tuple[str, str], Pick]]:
        """Return the picks that lie in a part, with their groups."""
        return [
            (key, pick) for key, held in self.groups.items() for pick in held if pick.part == part
        ]

    def parts(self) -> list[str]:
        """Return the parts that hold any pick."""
        return sorted({pick.part for held in self.groups.values() for pick in held})


def mix(rows: Integers, numbers: Integers) -> npt.NDArray[np.uint64]:
    """Return a hash (k,) of row and caption numbers: the finaliser of SplitMix64 (Steele 2014)."""
    with np.errstate(over="ignore"):
        mixed = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += (numbers + 2).astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


__all__ = ["ALT_TEXT", "DROPPED", "FAILED", "KEPT", "WRITTEN", "Pick", "Picks", "mix"]
