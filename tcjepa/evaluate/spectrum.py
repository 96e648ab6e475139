"""How much of the feature space an encoder uses: what collapse shows up in.

Shapes: n images, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

# RankMe's estimate is stable from about this many images on (Garrido et al. 2023, section 3).
_ENOUGH = 25_600


def rankme(pooled: Tensor, epsilon: float = 1e-7) -> float:
    """Return the effective rank of features (n, D): exp of the entropy of the singular values.

    RankMe (Garrido et al. 2023, arXiv 2210.02885, Eq. 1): p_k = σ_k / ‖σ‖₁ + ε, in [1, min(n, D)]
    up to a multiple of ε. Features are not centred, as published, so a large mean feature lowers
    it. Above 25,600 rows, evenly spaced ones are used. All-zero features give 0. Raises
    `ValueError` unless `pooled` is a finite matrix with at least one element.
    """
    rows = _checked(pooled)
    if len(rows) > _ENOUGH:
        rows = rows[torch.linspace(0, len(rows) - 1, _ENOUGH, device=rows.device).long()]
    singular = torch.linalg.svdvals(rows)
    total = singular.sum()
    if total == 0:
        return 0.0
    shares = singular / total + epsilon
    return float((-(shares * shares.log()).sum()).exp())


def feature_std(pooled: Tensor) -> float:
    """Return the mean standard deviation of L2-normalised features (n, D), times √D.

    SimSiam's collapse monitor (Chen & He 2021, section 4.1): 0 where all images share one feature,
    1 where features are spread evenly over the sphere; free of the features' scale. Raises
    `ValueError` as `rankme` does.
    """
    unit = torch.nn.functional.normalize(_checked(pooled), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5)


def _checked(pooled: Tensor) -> Tensor:
    if pooled.ndim != 2 or not pooled.numel():
        raise ValueError(f"features must be a non-empty (n, D) matrix, got {tuple(pooled.shape)}")
    rows = pooled.detach().double()
    if not bool(rows.isfinite().all()):
        raise ValueError("features are not finite: the encoder has diverged")
    return rows


__all__ = ["feature_std", "rankme"]
