"""What a loss needs of all ranks at once, with gradients."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def from_all_ranks(x_BK: Tensor) -> tuple[int, Tensor]:
    """Return this rank's first row and the rows (A, K) of all ranks, in order, with gradients.

    All ranks must have as many rows. Without ranks it is `x_BK` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return 0, x_BK
    return dist.get_rank() * len(x_BK), _gathered(x_BK)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph cannot hold it
def _gathered(x_BK: Tensor) -> Tensor:
    return cast(Tensor, _Gather.apply(x_BK))


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward, what all ranks say of this one's."""

    @staticmethod
    def forward(ctx: Any, x_BK: Tensor) -> Tensor:
        """Return (A, K) of this rank's (B, K)."""
        ctx.rows = len(x_BK)
        parts = [torch.empty_like(x_BK) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BK.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_AK: Tensor) -> Tensor:
        """Return the gradient of this rank's rows, summed over ranks."""
        total_AK = gradient_AK.clone()
        dist.all_reduce(total_AK)
        return total_AK.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


__all__ = ["from_all_ranks"]
