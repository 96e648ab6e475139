"""Follows the readings of a run, live or from its log, and says once when one goes wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from tcjepa.watch.rules import RECENT, RULES, Rule

Reading = Mapping[str, float | int | str | None]

#: The loss stands still where a block's mean stays above this share of the lowest before it.
_PROGRESS: Final = 0.998
_BLOCKS, _STILL, _SHORTEST = 20, 5, 50
#: A learning rate below this share of its peak is meant to stop the loss from moving.
_LR_SHARE: Final = 0.5


@dataclass(frozen=True)
class Finding:
    """Something that went wrong at a step, or that is worth knowing (`is_note`)."""

    name: str
    step: int | None
    text: str
    advice: str
    is_note: bool = False

    def __str__(self) -> str:
        when = "" if self.step is None else f"step {self.step}: "
        return f"{when}{self.text}: {self.advice}"

    @property
    def severity(self) -> str:
        """`warning` or `note`."""
        return "note" if self.is_note else "warning"


@dataclass
class _State:
    """What a rule remembers of one reading."""

    first: float | None = None
    best: float = float("-inf")
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    beyond: int = 0
    raised: bool = False


class Watch:
    """Follows the readings of a run; a run that resumes replays its log, so alarms survive.

    Rules marked `after_warmup` wait for `warmup_steps`. Readings named in `ignored` raise nothing.
    `steps`, the length of the run, is needed to judge whether the loss stands still.
    """

    def __init__(
        self,
        warmup_steps: int,
        history: Sequence[Reading] = (),
        ignored: Collection[str] = (),
        steps: int | None = None,
    ) -> None:
        self._warmup_steps = warmup_steps
        self._rules = [rule for rule in RULES if rule.key not in ignored]
        self._states: dict[tuple[int, str], _State] = {}
        self._plateau = _Plateau(warmup_steps, steps) if steps else None
        for record in history:
            self.check(record)

    def check(self, record: Reading) -> list[Finding]:
        """Take in the record of a step and return what must be said about it."""
        step = record.get("step")
        if not isinstance(step, int):
            return []
        found = []
        for number, rule in enumerate(self._rules):
            for key in _keys(rule, record):
                value = record.get(key)
                if isinstance(value, float):
                    state = self._states.setdefault((number, key), _State())
                    finding = self._judge(rule, state, key, value, step)
                    if finding is not None:
                        found.append(finding)
        if self._plateau is not None:
            still = self._plateau.check(step, record)
            found += [] if still is None else [still]
        return found

    def _judge(
        self, rule: Rule, state: _State, key: str, value: float, step: int
    ) -> Finding | None:
        if state.first is None:
            state.first = value
        if rule.after_warmup and step < self._warmup_steps:
            return None
        sign = 1.0 if rule.side == "above" else -1.0
        scale = _scale(rule, state)
        state.best = max(state.best, value)
        state.recent.append(value)
        if scale is None:
            return None
        if sign * value <= sign * rule.clear * scale:
            state.raised = False
        state.beyond = state.beyond + 1 if sign * value > sign * rule.limit * scale else 0
        if state.beyond < rule.patience or state.raised:
            return None
        state.raised = True
        of = " times" if rule.against == "recent" else " of"
        scaled = "" if rule.against == "value" else f"{of} {scale:.4g}"
        text = f"{key} = {value:.4g}, {rule.side} {rule.limit:g}{scaled}: {rule.says}"
        return Finding(rule.name, step, text, rule.advice, rule.is_note)


class _Plateau:
    """Notes once that the loss has stopped falling while the learning rate is still high.

    A note, not a warning: targets move, so the loss of a healthy JEPA may stand still or rise.
    """

    def __init__(self, warmup_steps: int, steps: int) -> None:
        self._warmup_steps, self._size = warmup_steps, max(_SHORTEST, steps // _BLOCKS)
        self._block: list[float] = []
        self._means: list[float] = []
        self._peak_lr, self._said = 0.0, False

    def check(self, step: int, record: Reading) -> Finding | None:
        """Take in a step's loss and learning rate."""
        loss, lr = record.get("loss"), record.get("lr")
        if self._said or step < self._warmup_steps or not isinstance(loss, float):
            return None
        rate = lr if isinstance(lr, float) else 0.0
        self._peak_lr = max(self._peak_lr, rate)
        self._block.append(loss)
        if len(self._block) < self._size:
            return None
        self._means.append(sum(self._block) / len(self._block))
        self._block = []
        before, last = self._means[:-_STILL], self._means[-_STILL:]
        if not before or min(last) < _PROGRESS * min(before) or rate < _LR_SHARE * self._peak_lr:
            return None
        self._said = True
        return Finding(
            "plateau",
            step,
            f"the loss has not fallen for {_STILL * self._size} steps (lowest mean "
            f"{min(before):.4g}, now {last[-1]:.4g})",
            "a JEPA's target moves, so this may be healthy: judge by ranks, text gain and "
            "train.probe_every; if they stand still too, change train.lr",
            is_note=True,
        )


def _keys(rule: Rule, record: Reading) -> list[str]:
    if not rule.key.endswith("*"):
        return [rule.key] if rule.key in record else []
    return [key for key in record if key.startswith(rule.key[:-1])]


def _scale(rule: Rule, state: _State) -> float | None:
    """Return what the limit is a multiple of; None while too little has been read."""
    if rule.against == "value":
        return 1.0
    if rule.against == "first":
        return state.first
    if rule.against == "best":
        return state.best if state.best > 0 else None
    return median(state.recent) if len(state.recent) == RECENT else None


__all__ = ["Finding", "Reading", "Watch"]
