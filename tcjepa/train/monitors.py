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

from tcjepa.evaluate.spectrum import feature_std, rankme
from tcjepa.model.learner import Inputs, Learner
from tcjepa.train.config import TrainSection


def due(section: TrainSection, step: int, last: bool) -> frozenset[str]:
    """Return which of "monitor", "probe" and "attention" are due after `step` optimizer steps.

    At the run's last step everything is that is on at all. Monitors are due after the first step
    too, when the warm-up has hardly begun: what comes later is compared with the initial weights.
    """
    every = {
        "monitor": section.monitor_every,
        "probe": section.probe_every,
        "attention": section.attention_every,
    }
    on = {name: steps for name, steps in every.items() if steps}
    found = {name for name, steps in on.items() if last or step % steps == 0}
    return frozenset(found | ({"monitor"} & on.keys() if step == 1 else set()))


@torch.no_grad()
def measure(model: Learner, held: Iterable[Inputs]) -> dict[str, float]:
    """Return the monitor readings of a model on held images, all batches pooled.

    Captions are swapped within a forward pass: those of a single image have no text gain, and
    readings of it are left out.

    `*_rank` is RankMe, the effective rank of average-pooled features (at most the number of
    images); `*_std` their deviation, 0 at collapse; `text_gain` the prediction loss with captions
    swapped between images minus the loss with the right ones, under the same masks;
    `text_gain_share` its share of the latter. Gradients are left alone.
    """
    pooled: dict[str, list[Tensor]] = {name: [] for name in model.encoders()}
    right: list[Tensor] = []
    swapped: list[Tensor] = []
    images = 0
    for inputs in held:
        features = {name: encoder(inputs.images) for name, encoder in model.encoders().items()}
        for name, seen_BPD in features.items():
            pooled[name].append(seen_BPD.float().mean(dim=1))
        found = model.caption_losses(inputs, features)
        if found is not None:
            images += len(inputs.images)
            right.append(found[0] * len(inputs.images))
            swapped.append(found[1] * len(inputs.images))
    readings: dict[str, float] = {}
    for name, parts in pooled.items():
        features_ND = torch.cat(parts)
        readings[f"monitor/{name}_rank"] = rankme(features_ND)
        readings[f"monitor/{name}_std"] = feature_std(features_ND)
    if right:
        own, other = (float(torch.stack(each).sum()) / images for each in (right, swapped))
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
