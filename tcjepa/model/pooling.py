"""Pooling over the captions of an image (TC-JEPA: "max-pool the conditioned features")."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tcjepa.model.precision import wide

Fusion = Literal["max", "mean", "attention"]


def pool(each_BNQE: Tensor, query_BQE: Tensor | None, present_BN: Tensor, fusion: Fusion) -> Tensor:
    """Return (B, Q, E) of one (Q, E) per caption; absent captions never count.

    Every image has a present caption. `attention` weighs captions by a softmax of their dot product
    with the query over sqrt(E), token by token.
    """
    if fusion == "max":
        return each_BNQE.amax(dim=1)  # absent captions are copies of present ones
    if fusion == "mean":
        weights_BN = wide(present_BN.to(each_BNQE.dtype)) / present_BN.sum(1, keepdim=True)
        return torch.einsum("bnqe,bn->bqe", each_BNQE, weights_BN.to(each_BNQE.dtype))
    assert query_BQE is not None
    scores_BNQ = wide((each_BNQE * query_BQE.unsqueeze(1)).sum(-1)) * query_BQE.shape[-1] ** -0.5
    weights_BNQ = scores_BNQ.masked_fill(~present_BN.unsqueeze(2), -torch.inf).softmax(dim=1)
    return torch.einsum("bnqe,bnq->bqe", each_BNQE, weights_BNQ.to(each_BNQE.dtype))


class AttendMax(torch.autograd.Function):
    """max over captions n of sum_s weights_s value_s, without keeping a tensor per caption.

    Takes weights (B, N, S, Q) and values (B, N, S, E) of one dtype and returns (B, Q, E). For its
    backward pass plain autograd keeps all N maps (B, N, Q, E); here it is the winner's number, one
    byte per feature. Of equal captions the first gets the gradient.
    """

    @staticmethod
    def forward(ctx: Any, weights_BNSQ: Tensor, value_BNSE: Tensor) -> Tensor:
        """Return the maximum (B, Q, E)."""
        best = _added(weights_BNSQ, value_BNSE, 0)
        winner = torch.zeros_like(best, dtype=torch.uint8)
        for n in range(1, weights_BNSQ.shape[1]):
            own = _added(weights_BNSQ, value_BNSE, n)
            winner = winner.masked_fill(own > best, n)
            best = torch.maximum(best, own)
        ctx.save_for_backward(weights_BNSQ, value_BNSE, winner)
        return best

    @staticmethod
    def backward(ctx: Any, gradient_BQE: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weights and values: only winners are followed."""
        weights_BNSQ, value_BNSE, winner = ctx.saved_tensors
        weights, values = [], []
        for n in range(weights_BNSQ.shape[1]):
            own_BQE = gradient_BQE.masked_fill(winner != n, 0)
            weights.append(torch.bmm(value_BNSE[:, n], own_BQE.transpose(1, 2)))
            values.append(torch.bmm(weights_BNSQ[:, n], own_BQE))
        return torch.stack(weights, dim=1), torch.stack(values, dim=1)


def _added(weights_BNSQ: Tensor, value_BNSE: Tensor, n: int) -> Tensor:
    # The transposed view costs nothing in a batched product.
    return torch.bmm(weights_BNSQ[:, n].transpose(1, 2), value_BNSE[:, n])


def attend_max(weights_BNSQ: Tensor, value_BNSE: Tensor) -> Tensor:
    """Return max over captions of their attention outputs, (B, Q, E); see `AttendMax`."""
    result: Tensor = AttendMax.apply(weights_BNSQ, value_BNSE)
    return result


__all__ = ["Fusion", "attend_max", "pool"]
