"""`alignment: linear`: does a caption belong to its image, learned from the run itself.

Regularised canonical correlation (Hardoon et al. 2004; ridge as in Vinod 1976) finds directions of
image features and of text features that go together over the run's pairs. In canonical coordinates
u, v of unit variance, jointly Gaussian pairs have the pointwise mutual information

    s = Σ_i ρ_i u_i v_i / (1 - ρ_i²) - ρ_i² (u_i² + v_i²) / (2 (1 - ρ_i²)) - ½ ln(1 - ρ_i²),

the log odds that a caption was written for this image rather than drawn from the run. Swapped
captions weaken all ρ alike and leave the directions. Each fold is scored by a model fitted on the
other folds; its ρ and scales are what the other folds' models reached on images they did not see.
The score is σ(a s + b), with a and b fitted against deranged pairs. The steps: `image_features`
and `accumulate` per part, `fit` (in `alignment_fit`) once, `score` per part.

Dimensions: n images, m captions, F image features, T text features, K folds, r components.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.alignment_statistics import Doubles, Floats, folds_of
from pipeline.scorers.alignment_text import text_features

#: Bound on a mutual information, so that `exp` of it is finite [nats].
LARGEST_INFORMATION: Final = 50.0
_CHUNK: Final = 2048  # captions whose features are held in memory at once


@dataclass(frozen=True)
class LinearAlignment:
    """A fitted model: per fold k, means, projections to r components and their correlations.

    `image_mean` (K, F), `image_map` (K, F, r), `text_mean` (K, T), `text_map` (K, T, r),
    `correlation` (K, r), `calibration` (2,) = a, b; float64.
    """

    image_mean: Doubles
    image_map: Doubles
    text_mean: Doubles
    text_map: Doubles
    correlation: Doubles
    calibration: Doubles

    def to_bytes(self) -> bytes:
        """Return the model as NPZ; equal models are equal bytes."""
        sink = io.BytesIO()
        np.savez(sink, **asdict(self))
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> LinearAlignment:
        """Read what `to_bytes` wrote; raises `ValueError` or `KeyError` for other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def score(
    model: LinearAlignment,
    images: Floats,
    texts: Sequence[str],
    owner: Sequence[int] | NDArray[np.int64],
    uids: Sequence[str],
) -> Floats:
    """Return the alignment of each caption with its image, (m,) float32 in [0, 1], 4 decimals.

    `images` (n, F), `owner` (m,) row of each caption's image, `uids` n. NaN where the image could
    not be decoded or the caption has no content word.
    """
    owner = np.asarray(owner, np.int64)
    folds = folds_of(uids, len(model.correlation))
    scores = np.full(len(texts), np.nan, np.float64)
    slope, offset = model.calibration
    for start in range(0, len(texts), _CHUNK):
        text = text_features(texts[start : start + _CHUNK], model.text_mean.shape[1])
        rows = owner[start : start + _CHUNK]
        for fold in range(len(model.correlation)):
            mine = np.flatnonzero((folds[rows] == fold) & text.any(1))
            u, v = project_pairs(model, fold, images[rows[mine]], text[mine])
            information = pair_information(model, fold, u, v)
            scores[start + mine] = 1 / (1 + np.exp(-(slope * information + offset)))
    return np.round(scores, 4).astype(np.float32)


def project_pairs(
    model: LinearAlignment, fold: int, images: Floats, texts: Floats
) -> tuple[Doubles, Doubles]:
    """Return canonical coordinates u (n, r) of images and v (m, r) of captions of one fold."""
    u = (images.astype(np.float64) - model.image_mean[fold]) @ model.image_map[fold]
    v = (texts.astype(np.float64) - model.text_mean[fold]) @ model.text_map[fold]
    return u, v


def pair_information(model: LinearAlignment, fold: int, u: Doubles, v: Doubles) -> Doubles:
    """Return the mutual information of u[i] with v[i], (m,), clipped to what `exp` can take."""
    cross, own, constant = _weights(model.correlation[fold])
    information = (u * v) @ cross - (u**2 + v**2) @ own + constant
    return np.clip(information, -LARGEST_INFORMATION, LARGEST_INFORMATION)


def all_pairs_information(correlation: Doubles, u: Doubles, v: Doubles) -> Doubles:
    """Return the mutual information of every u with every v, (n, m)."""
    cross, own, constant = _weights(correlation)
    information = (u * cross) @ v.T - (u**2 @ own)[:, None] - v**2 @ own + constant
    return np.clip(information, -LARGEST_INFORMATION, LARGEST_INFORMATION)


def _weights(correlation: Doubles) -> tuple[Doubles, Doubles, float]:
    rest = 1 - correlation**2
    return correlation / rest, correlation**2 / (2 * rest), float(-0.5 * np.log(rest).sum())
