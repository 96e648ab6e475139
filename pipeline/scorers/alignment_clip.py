"""`alignment: clip`: does a caption belong to its image, by a pretrained dual encoder.

Evidence is the cosine of image and caption (CLIPScore, Hessel et al. 2021, arXiv 2104.08718),
stored as it is, since the thresholds that users know are cosines: LAION keeps 0.28 and up with
ViT-B/32, DataComp the top 30% with ViT-L/14. Cosines of right pairs lie near 0.3 with one model and
near 0.1 with another, so the score in [0, 1] is calibrated on the run as that of `linear` is: the
probability, at even odds, that the caption was written for this image rather than for another.

Dimensions: n images, m captions, s sampled pairs, D width of the encoder's space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.alignment_odds import tilt
from pipeline.scorers.alignment_statistics import Floats

#: Sampled pairs below which there is nothing to calibrate on.
MIN_PAIRS: Final = 64


@dataclass(frozen=True)
class ClipAlignment:
    """σ(slope · cosine + offset) is the score."""

    slope: float
    offset: float

    def to_bytes(self) -> bytes:
        """Return the model as JSON; equal models are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ClipAlignment:
        """Read what `to_bytes` wrote; raises `ValueError` or `TypeError` for other bytes."""
        return cls(**json.loads(data))


def fit(images: Floats, texts: Floats) -> ClipAlignment | None:
    """Fit the calibration on s pairs, one per image: unit vectors (s, D) each.

    None for fewer than `MIN_PAIRS` pairs: then there are cosines and no scores.
    """
    if len(images) < MIN_PAIRS:
        return None
    table = texts.astype(np.float64) @ images.astype(np.float64).T
    paired, deranged = np.diag(table), table[~np.eye(len(table), dtype=bool)]
    middle, spread = float(deranged.mean()), max(float(deranged.std()), 1e-6)
    slope, offset = tilt((paired - middle) / spread, (deranged - middle) / spread)
    return ClipAlignment(slope / spread, offset - slope * middle / spread)


def cosines(images: Floats, texts: Floats, owner: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Return the cosine of each caption with its image, (m,), 4 decimals; NaN without an image.

    `images` (n, D) as stored: a row that is not finite was not decoded; `texts` (m, D) unit
    vectors; `owner` (m,) the row of each caption's image. Four decimals, because the last digits
    of a model's output depend on the machine.
    """
    mine = images[np.asarray(owner, np.int64)].astype(np.float64)
    # Stored as half floats: their length is 1 to three digits only.
    mine /= np.linalg.norm(mine, axis=1, keepdims=True)
    found = np.einsum("md,md->m", mine, texts.astype(np.float64))
    rounded: Floats = np.round(np.clip(found, -1.0, 1.0), 4).astype(np.float32)
    return rounded


def score(model: ClipAlignment, values: Floats) -> Floats:
    """Return the alignment of captions with these cosines, in [0, 1], 4 decimals; NaN stays."""
    odds = np.clip(model.slope * values.astype(np.float64) + model.offset, -50.0, 50.0)
    scores: Floats = np.round(1 / (1 + np.exp(-odds)), 4).astype(np.float32)
    return scores
