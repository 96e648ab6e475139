"""The model on several ranks: replicated (DDP) or sharded (FSDP2), compiled and checkpointed.

`run.model` always stays the plain `Learner`: its parameters' names, and so checkpoints, know
nothing of how it is run. Under DDP every rank holds all of it and gradients are averaged in buckets
while the backward pass still runs. Under FSDP2 every rank holds a slice of each parameter, of its
gradient, its optimizer state and its EMA copy; one residual block at a time is gathered whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tcjepa.model.learner import Inputs, Learner, StepOutput
from tcjepa.train.config import TrainSection
from tcjepa.train.distributed import World

#: What `torch.compile` hands graphs to; torch's default.
COMPILER = "inductor"
#: Of one piece of code, at most; torch's 8 are fewer than FSDP2's blocks need, and what is beyond
#: them runs uncompiled.
_GRAPHS = 64
#: DDP's gradient buckets [MiB]; torch's default. The first to be full is the first to travel.
BUCKET_MIB = 25


class Parallel:
    """How a rank runs the model: its forward passes, and what its gradients become.

    Building one shards the model's parameters in place under `train.parallel=fsdp2`, so it comes
    before the optimizer. With a single rank there is nothing to share and both kinds are the same.
    """

    def __init__(self, model: Learner, config: TrainSection, world: World, is_bf16: bool) -> None:
        self.is_sharded = is_sharded(config, world)
        self._model = model
        self._objective: nn.Module = Objective(model)
        if config.activation_checkpointing:
            checkpoint_activations(model)
        if config.compile:
            compile_model(model, whole=not self.is_sharded)
        if self.is_sharded:
            # bf16 on CPU is for computing only: there gathering in fp32 costs no network.
            shard(model, world, torch.bfloat16 if is_bf16 and world.device.type == "cuda" else None)
        elif world.size > 1:
            self._objective = _replicate(self._objective, config)

    def forward(self, inputs: Inputs, text_scale: float | Tensor) -> StepOutput:
        """Return the model's output for a micro-batch, ready for `backward` of its loss."""
        return StepOutput(*self._objective(*self._model.arguments(inputs, text_scale)))

    @contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        """Enter the context of one micro-batch: ranks exchange gradients after the last only."""
        held: AbstractContextManager[None] = nullcontext()
        if self.is_sharded:
            cast(Any, self._model).set_requires_gradient_sync(is_last)
        elif isinstance(self._objective, nn.parallel.DistributedDataParallel) and not is_last:
            held = self._objective.no_sync()
        with held:
            yield

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
        """Return the norm of the global batch's gradient, and scale it down to `limit`, if any."""
        trained = [p for p in parameters if p.grad is not None]
        norm = get_total_norm([cast(Tensor, p.grad) for p in trained])
        if self.is_sharded:
            norm = cast(Any, norm).full_tensor()
        if limit is not None:
            clip_grads_with_norm_(trained, limit, norm)
        return norm


def is_sharded(config: TrainSection, world: World) -> bool:
    """Return whether each rank holds only slices of the parameters."""
    return world.size > 1 and config.parallel == "fsdp2"


class Objective(nn.Module):
    """The model with a plain tuple as output, which is all that DDP looks into."""

    def __init__(self, model: Learner) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return (loss, terms, monitors) of the model's `forward`."""
        output: StepOutput = self.model(*inputs)
        return output.loss, output.terms, output.monitors


def checkpoint_activations(model: Learner) -> None:
    """Make the trained blocks forget their insides and compute them again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    for block in model.trained_blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_model(model: Learner, whole: bool) -> None:
    """Compile the model's forward pass, or only that of each block where hooks must run between.

    FSDP2 gathers and frees parameters in hooks around each block, which a graph cannot hold.
    """
    # Blocks of one kind share their code, and so the count of its graphs: with and without
    # gradients, for each number of captions, for sizes met once and for any size.
    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    if whole:
        model.compile(backend=COMPILER)
        return
    for block in [*model.trained_blocks(), *model.other_blocks()]:
        block.forward = torch.compile(block.forward, backend=COMPILER)


def shard(model: Learner, world: World, compute_dtype: torch.dtype | None) -> None:
    """Shard all parameters over the ranks (FSDP2), gathered in `compute_dtype` to compute with.

    Gradients are summed in float32. A JEPA's two encoders are split alike, so the EMA update needs
    no communication. Its encoders and predictor are groups of their own because monitors call them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # It warns that outputs are views; nothing here changes a tensor of the forward pass in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Autocast decides what is computed in which precision; norms and positions are rounded besides.
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    blocks = [*model.trained_blocks(), *model.other_blocks()]
    for module in [*blocks, *model.sections(), model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _replicate(objective: nn.Module, config: TrainSection) -> nn.Module:
    if config.compile and config.activation_checkpointing:
        # DDP's own graph splitting cannot cut recomputed regions: one graph, no overlap.
        torch._dynamo.config.optimize_ddp = False
    return nn.parallel.DistributedDataParallel(
        objective,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=BUCKET_MIB,
    )


__all__ = ["Parallel", "checkpoint_activations", "compile_model", "is_sharded", "shard"]
