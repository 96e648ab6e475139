"""Test images with their captions: what is shown to a model when its text path is measured.

They are read once and held, because they are shown many times: with other captions, under other
masks, to a trained and to an untrained model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.schema import Caption
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.tally import Tally


@dataclass(frozen=True)
class CaptionedImages:
    """n test images, each with 0..N captions and a record (see `tcjepa.evaluate.runner`)."""

    uids: tuple[str, ...]
    images: Tensor  # (n, 3, H, H) uint8
    captions: Sequence[Sequence[Caption]]
    records: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.uids)

    def only(self, rows: Sequence[int]) -> CaptionedImages:
        """Return some of the images, in the order of their row numbers."""
        return CaptionedImages(
            tuple(self.uids[row] for row in rows),
            self.images[list(rows)],
            [self.captions[row] for row in rows],
            [self.records[row] for row in rows],
        )

    def texts(self, numbers: Sequence[int]) -> list[list[str]]:
        """Return the texts of some images' captions."""
        return [[caption["text"] for caption in self.captions[number]] for number in numbers]


def measured(tally: Tally) -> Measure:
    """Return the measure of a tally of one group, with the standard error over test images.

    The error is that of a ratio of sums, linearised (Cochran 1977, Sampling Techniques, chapter 6):
    an image's words are far from independent, so images and not words are what is drawn. Raises
    `ValueError` for several groups, or where fewer than two images have a denominator above 0: one
    image has no such error.
    """
    if tally.sums.shape[1] != 1:
        raise ValueError("only a measure of one group has this error")
    numerators, denominators = tally.sums[:, 0].astype(np.float64).T
    total, count = denominators.sum(), int((denominators > 0).sum())
    if count < 2:
        raise ValueError(f"a standard error over images needs two that count, got {count}")
    value = numerators.sum() / total
    residual = float(np.square(numerators - value * denominators).sum())
    error = math.sqrt(residual * count / (count - 1)) / total
    return Measure.over_seeds([float(value)], float(error))


__all__ = ["CaptionedImages", "measured"]
