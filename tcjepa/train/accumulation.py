"""The gradient of a global batch, from micro-batches on several ranks, equal to that of one pass.

The prediction loss is a mean over images, so a micro-batch weighs by its images. The text
regularizers are means over the images that have a caption (Eq. 4), so there it weighs by those;
both are counted before the first pass, over all ranks. The supervised baseline's loss is a mean
over images too. The contrastive one's is not, and is never taken in micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tcjepa.data.loader import Batch
from tcjepa.model.learner import Inputs
from tcjepa.train import distributed

if TYPE_CHECKING:
    from tcjepa.train.run import Run

#: The terms that are means over captioned images.
REGULARIZERS: Final = ("sparse", "consistency")


@dataclass(frozen=True)
class Part:
    """A micro-batch and its weights in the mean over this rank's batch."""

    inputs: Inputs
    share: float
    """Of this rank's images."""
    captioned: Tensor | float
    """What its regularizers weigh beside its prediction loss; 1 if every image has a caption."""
    is_last: bool


def accumulate(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Add up the gradients of the batch's micro-batches; return loss, terms and readings.

    The mean of the ranks' losses is the global batch's, and so is that of their gradients.
    """
    scale = run.regularizer_scale(run.step)
    total: dict[str, Tensor] = {}
    for part in _parts(run, batch):
        with run.parallel.accumulating(part.is_last), run.autocast():
            output = run.parallel.forward(part.inputs, scale * part.captioned)
            # Autocast would cast the backward products of what the forward pass kept in float32.
            with torch.autocast(run.world.device.type, enabled=False):
                torch.autograd.backward(part.share * output.loss)
        for key, value in {"loss": output.loss, **output.terms, **output.monitors}.items():
            weight = part.share * (part.captioned if key in REGULARIZERS else 1.0)
            total[key] = total.get(key, 0.0) + weight * value.detach().float()
    return total


def _parts(run: Run, batch: Batch) -> Iterator[Part]:
    images = len(batch.images)
    captions = [any(map(run.has_words, own)) for own in batch.captions]
    weighs = run.conditioning is not None and run.accumulates
    everywhere = distributed.total(sum(captions), run.world).clamp_min(1) if weighs else None
    done = 0
    for inputs, share in run.inputs.micro_batches(batch, run.step):
        size = len(inputs.images)
        captioned: Tensor | float = 1.0
        if everywhere is not None:
            here = sum(captions[done : done + size]) * run.world.size / share
            captioned = (here / everywhere).float()
        done += size
        yield Part(inputs, share, captioned, done == images)


__all__ = ["Part", "accumulate"]
