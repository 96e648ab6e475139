"""What is measured beyond the loss; what it must not be is in `tcjepa.watch.rules`.

A falling loss hides collapse, and a dead text path costs nothing that the loss shows. So every
`train.monitor_every` steps some held images are encoded by both encoders, and the prediction loss
is taken twice: with their own captions and with captions swapped between images.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from tcjepa.evaluate.spectrum import feature_std, rankme
from tcjepa.masks import Masks
from tcjepa.model import losses
from tcjepa.model.encoder import gather_patches
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import swap_captions
from tcjepa.train.config import TrainSection
from tcjepa.train.inputs import Inputs


def due(section: TrainSection, step: int, last: bool) -> frozenset[str]:
    """Return which of "monitor", "probe" and "attention" are due after `step` optimizer steps.

    At the run's last step everything is that is on at all.
    """
    every = {
        "monitor": section.monitor_every,
        "probe": section.probe_every,
        "attention": section.attention_every,
    }
    return frozenset(name for name, steps in every.items() if steps and (last or step % steps == 0))


@torch.no_grad()
def measure(model: TCJEPA, held: Iterable[Inputs]) -> dict[str, float]:
    """Return the monitor readings of a model on held images, all batches pooled.

    Captions are swapped within a forward pass: those of a single image have no text gain, and
    readings of it are left out.

    `*_rank` is RankMe, the effective rank of average-pooled features (at most the number of
    images); `*_std` their deviation, 0 at collapse; `text_gain` the prediction loss with captions
    swapped between images minus the loss with the right ones, under the same masks;
    `text_gain_share` its share of the latter. Gradients are left alone.
    """
    pooled: dict[str, list[Tensor]] = {"encoder": [], "target_encoder": []}
    right: list[Tensor] = []
    swapped: list[Tensor] = []
    images = 0
    for inputs in held:
        seen_BPD = model.target_encoder(inputs.images)
        pooled["encoder"].append(model.encoder(inputs.images).float().mean(dim=1))
        pooled["target_encoder"].append(seen_BPD.float().mean(dim=1))
        if inputs.text is not None and len(inputs.images) > 1:
            images += len(inputs.images)
            # Both losses share the targets and the context: only the predictor runs twice.
            target_BMTD = _targets(seen_BPD, inputs.masks)
            context_BCD = model.encoder(inputs.images, inputs.masks.context)
            for found, text in ((right, inputs.text), (swapped, swap_captions(inputs.text))):
                predicted_BMTD = model.predictor(context_BCD, inputs.masks, text)[0]
                kind = model.config.prediction_loss
                loss = losses.prediction_loss(predicted_BMTD, target_BMTD, kind).float()
                found.append(loss * len(inputs.images))
    readings: dict[str, float] = {}
    for name, parts in pooled.items():
        features_ND = torch.cat(parts)
        readings[f"monitor/{name}_rank"] = rankme(features_ND)
        readings[f"monitor/{name}_std"] = feature_std(features_ND)
    if right:
        own, other = (float(torch.stack(found).sum()) / images for found in (right, swapped))
        readings["monitor/text_gain"] = other - own
        readings["monitor/text_gain_share"] = (other - own) / own if own else 0.0
    return readings


def memory(device: torch.device) -> dict[str, float]:
    """Return the largest memory used so far: of this process, and of its GPU [GiB]."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    readings = {"memory_gib": peak / 2**30}
    if device.type == "cuda":
        readings["cuda_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return readings


def _targets(seen_BPD: Tensor, masks: Masks) -> Tensor:
    """Return the target blocks (B, M, T, D) of the target encoder's features."""
    B, M, T = masks.targets.shape
    target_BPD = functional.layer_norm(seen_BPD, seen_BPD.shape[-1:])
    return gather_patches(target_BPD, masks.targets.flatten(1)).view(B, M, T, -1)
