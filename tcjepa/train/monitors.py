"""What is watched beyond the loss, and when a run must say that it goes wrong.

A falling loss hides collapse, and a dead text path costs nothing that the loss shows. So every
`train.monitor_every` steps some held images are encoded by both encoders, and the prediction loss
is taken twice: with their own captions and with captions swapped between images.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tcjepa.evaluate.spectrum import feature_std, rankme
from tcjepa.model.jepa import TCJEPA, JepaOutput
from tcjepa.text import TextBatch, swap_captions
from tcjepa.train.inputs import Inputs
from tcjepa.train.log import Record


@torch.no_grad()
def measure(model: TCJEPA, held: Iterable[Inputs]) -> dict[str, float]:
    """Return the monitor readings of a model on held images, all batches pooled.

    `*_rank` is RankMe, the effective rank of average-pooled features (at most the number of
    images); `*_std` their deviation, 0 at collapse; `text_gain` the prediction loss with captions
    swapped between images minus the loss with the right ones, under the same masks;
    `text_gain_share` its share of the latter. Gradients are left alone.
    """
    pooled: dict[str, list[Tensor]] = {"encoder": [], "target_encoder": []}
    right: list[Tensor] = []
    swapped: list[Tensor] = []
    for inputs in held:
        for name, features in pooled.items():
            features.append(getattr(model, name)(inputs.images).float().mean(dim=1))
        if inputs.text is not None:
            right.append(_predict_loss(model, inputs, inputs.text))
            swapped.append(_predict_loss(model, inputs, swap_captions(inputs.text)))
    readings: dict[str, float] = {}
    for name, parts in pooled.items():
        features_ND = torch.cat(parts)
        readings[f"monitor/{name}_rank"] = rankme(features_ND)
        readings[f"monitor/{name}_std"] = feature_std(features_ND)
    if right:
        loss, other = float(torch.stack(right).mean()), float(torch.stack(swapped).mean())
        readings["monitor/text_gain"] = other - loss
        readings["monitor/text_gain_share"] = (other - loss) / loss if loss else 0.0
    return readings


def memory(device: torch.device) -> dict[str, float]:
    """Return the largest memory used so far: of this process, and of its GPU [GiB]."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    readings = {"memory_gib": peak / 2**30}
    if device.type == "cuda":
        readings["cuda_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return readings


def _predict_loss(model: TCJEPA, inputs: Inputs, text: TextBatch) -> Tensor:
    output: JepaOutput = model(inputs.images, inputs.masks, text)
    return output.terms["predict"].float()


@dataclass(frozen=True)
class Alarm:
    """A reading that must not stay low.

    It is announced once when `patience` readings in a row lie below `low`, and again only after a
    reading above `clear`. `relative` measures both against the run's first reading.
    """

    key: str
    low: float
    clear: float
    patience: int
    relative: bool
    advice: str


_COLLAPSE: Final = (
    "the features are collapsing; lower train.lr, lengthen the warm-up, raise train.ema, or use a "
    "larger train.batch"
)
_TEXT: Final = (
    "the predictor ignores the captions; check that they belong to their images (python -m tcjepa "
    "inspect), lower model.text.sparsity_weight or raise model.text.regularizer_warmup"
)
ALARMS: Final = (
    Alarm("monitor/encoder_rank", 0.25, 0.4, 2, True, _COLLAPSE),
    Alarm("monitor/target_encoder_rank", 0.25, 0.4, 2, True, _COLLAPSE),
    Alarm("monitor/encoder_std", 0.1, 0.2, 2, True, _COLLAPSE),
    Alarm("monitor/text_gain_share", 0.0005, 0.001, 3, False, _TEXT),
    Alarm(
        "positive_share",
        0.001,
        0.01,
        3,
        False,
        "no patch is similar to any word, so the rectified sparsity term does nothing any more; "
        "lower model.text.sparsity_weight or use model.text.sparsity=entropy",
    ),
)


class Watch:
    """Follows the monitor readings of a run and says once when one goes wrong.

    A run that resumes replays its log, so alarms and first readings survive a restart. Text alarms
    wait for `warmup_steps`: before, nothing has been learned from text yet. Readings named in
    `ignored` raise no alarm.
    """

    def __init__(
        self, warmup_steps: int, history: Sequence[Record] = (), ignored: Collection[str] = ()
    ) -> None:
        self._warmup_steps = warmup_steps
        self._alarms = [alarm for alarm in ALARMS if alarm.key not in ignored]
        self._first: dict[str, float] = {}
        self._low: dict[str, int] = {}
        self._raised: set[str] = set()
        for record in history:
            self.check(record)

    def check(self, record: Record) -> list[str]:
        """Take in the record of a step and return what must be said about it."""
        if not any(key.startswith("monitor/") for key in record):
            return []
        return [line for alarm in self._alarms if (line := self._check(alarm, record))]

    def _check(self, alarm: Alarm, record: Record) -> str | None:
        value, step = record.get(alarm.key), record["step"]
        if not isinstance(value, float) or not isinstance(step, int):
            return None
        first = self._first.setdefault(alarm.key, value)
        scale = first if alarm.relative else 1.0
        if not alarm.relative and step < self._warmup_steps:
            return None
        if value >= alarm.clear * scale:
            self._raised.discard(alarm.key)
        self._low[alarm.key] = self._low.get(alarm.key, 0) + 1 if value < alarm.low * scale else 0
        if self._low[alarm.key] < alarm.patience or alarm.key in self._raised:
            return None
        self._raised.add(alarm.key)
        limit = f"{alarm.low:g} of its start {first:.4g}" if alarm.relative else f"{alarm.low:g}"
        return f"step {step}: {alarm.key} = {value:.4g}, below {limit}: {alarm.advice}"
