"""Terms against collapse: variance and covariance of patch features (VICReg, arXiv 2105.04906).

In a JEPA, as C-JEPA has them (arXiv 2410.19560), but of the context encoder's patch features as
they are, without a projector; the sample is every context patch of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.model.precision import wide
from tcjepa.model.ranks import from_all_ranks

#: Added to variances under the root, which has no slope at 0 (VICReg).
_EPSILON = 1e-4
#: The std below which a feature costs (VICReg); that of layer-normed features, spread evenly.
LEAST_STD = 1.0


def spread_terms(features_BCD: Tensor) -> dict[str, Tensor]:
    """Return `variance` and `covariance`, scalars, of patch features (B, C, D) of all ranks.

    variance: mean over features of max(0, 1 - std); covariance: sum of the squared covariances of
    two different features, over D. Every rank returns the terms of the global batch, so the mean of
    the ranks' gradients is its gradient; all ranks must have as many patches. Not a mean over
    images: terms of micro-batches do not add up to those of their batch.
    """
    with torch.autocast(features_BCD.device.type, enabled=False):
        x_KD = wide(features_BCD).flatten(0, 1)
        mean_RD = from_all_ranks(x_KD.mean(0, keepdim=True))[1]
        ranks, D = mean_RD.shape
        x_KD = x_KD - mean_RD.mean(0)
        scatter_DD = from_all_ranks(x_KD.T @ x_KD)[1].view(ranks, D, D).sum(0)
        covariance_DD = scatter_DD / (ranks * len(x_KD) - 1)
        std_D = (covariance_DD.diagonal() + _EPSILON).sqrt()
        between_DD = covariance_DD - covariance_DD.diagonal().diag()
        return {
            "variance": functional.relu(LEAST_STD - std_D).mean(),
            "covariance": between_DD.square().sum() / D,
        }


__all__ = ["LEAST_STD", "spread_terms"]
