"""How much of the feature space an encoder uses: what collapse shows up in.

Shapes: n images, q views of each, D features.
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


def lidar(views: Tensor, delta: float = 1e-4) -> float:
    """Return the effective rank of what tells images apart, by the measure of how views differ.

    LiDAR (Thilak et al. 2023, arXiv 2312.04000, Eqs. 1 to 5): of features (n, q, D), Σ_b is the
    covariance of the images' mean features and Σ_w that of views about their image's mean, plus
    δ·I; the result is exp of the entropy of the eigenvalues of Σ_w^(-1/2) Σ_b Σ_w^(-1/2), in
    [1, min(n - 1, D)]. RankMe also counts directions in which views of one image differ as much as
    images do; this does not. δ = 1e-4 as published. Raises `ValueError` unless n and q are at least
    2 and all features finite.
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise ValueError(f"LiDAR needs (n >= 2, q >= 2, D) features, got {tuple(views.shape)}")
    n, q, width = views.shape
    rows = _checked(views.reshape(n * q, width)).view(n, q, width)
    means = rows.mean(1)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / (n - 1)
    spread = (rows - means[:, None]).reshape(n * q, width)
    within = spread.T @ spread / (n * (q - 1))
    values, axes = torch.linalg.eigh(within)
    whiten = axes * (values.clamp_min(0) + delta).rsqrt()
    eigenvalues = torch.linalg.eigvalsh(whiten.T @ between @ whiten).clamp_min(0)
    if not float(eigenvalues.sum()) > 0:
        return 0.0
    shares = eigenvalues / eigenvalues.sum() + 1e-7
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


__all__ = ["feature_std", "lidar", "rankme"]
