"""Captions of one image from several rows: pooled, each said once.

Rows of an image (exact copies) and of its near-duplicates form a group; its leader keeps the
captions of all. Arrays only: n rows, m captions, and never a Python object for one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.filters.reasons import CAPTION_REASONS, POOL_REASONS

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint8]

#: What a code of `Pools.code` stands for, counted from 1; 0 is kept.
REASONS = [*CAPTION_REASONS, *POOL_REASONS]
_DUPLICATE = REASONS.index("duplicate_text") + 1
_BEYOND = REASONS.index("too_many_captions") + 1
_DROPPED = REASONS.index("image_dropped") + 1


@dataclass
class Pools:
    """All alt texts of a run: the row each belongs to (m,), the row that leads it (m,), its code.

    Made with the codes of the captions' own verdicts; the `drop_…` methods add what the group
    says.
    """

    owner: Rows
    lead: Rows
    code: Codes

    def drop_with_images(self, kept: npt.NDArray[np.bool_]) -> None:
        """Mark captions whose leader is not `kept` (n,)."""
        self.code[(self.code == 0) & ~kept[self.lead]] = _DROPPED

    def shared(self, rows: int) -> Rows:
        """Return the captions left in groups with more than one left, in pool order.

        Sorted by group; in it the leader's own captions come first, then by place.
        """
        alive = np.flatnonzero(self.code == 0)
        per_lead = np.bincount(self.lead[alive], minlength=rows)
        return self.ordered(alive[per_lead[self.lead[alive]] > 1])

    def drop_beyond(self, limit: int, rows: int) -> None:
        """Mark what a group has left after its first `limit` captions, in pool order."""
        alive = np.flatnonzero(self.code == 0)
        per_lead = np.bincount(self.lead[alive], minlength=rows)
        crowded = self.ordered(alive[per_lead[self.lead[alive]] > limit])
        _, starts, counts = np.unique(self.lead[crowded], return_index=True, return_counts=True)
        place = np.arange(len(crowded)) - np.repeat(starts, counts)
        self.code[crowded[place >= limit]] = _BEYOND

    def ordered(self, captions: Rows) -> Rows:
        """Return some captions in pool order."""
        moved = self.owner[captions] != self.lead[captions]
        return captions[np.lexsort((captions, moved, self.lead[captions]))]

    def drop_repeats(self, captions: Rows, label: Rows) -> None:
        """Mark those of some captions whose `label` is another's place among them."""
        self.code[captions[label != np.arange(len(label))]] = _DUPLICATE
