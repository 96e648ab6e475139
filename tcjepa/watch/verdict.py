"""What looks wrong with a run, from its directory: the alarms replayed, and how it ended."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from tcjepa.watch.alarms import Finding, Watch
from tcjepa.watch.rules import meaningless
from tcjepa.watch.runfiles import RunFiles

#: A run that has written nothing for so long is taken for dead, unless its windows take longer [s].
#: Probes, large checkpoints and compiling take minutes in which nothing is written.
_QUIET: Final = 600.0
_WINDOWS: Final = 10
#: Fewer steps prove mechanics, not features; ours.
_FEW_STEPS: Final = 300
#: The target is an average over 1 / (1 - ema) steps; over more of the run than this it lags; ours.
_LAG_SHARE: Final = 0.2
_UNREADABLE_SHARE: Final = 0.001


def judge(run: RunFiles) -> list[Finding]:
    """Return what must be said about a run: how it ended, then alarms by step, then notes."""
    found = [*_ending(run), *_replay(run), *_ledger(run), *_length(run)]
    return sorted(found, key=lambda each: each.is_note)


def _replay(run: RunFiles) -> list[Finding]:
    watch = Watch(run.warmup_steps, ignored=meaningless(run.config), steps=run.steps)
    return [finding for record in run.records for finding in watch.check(record)]


def _ending(run: RunFiles) -> list[Finding]:
    if not run.records:
        return [_note("empty", "nothing is logged yet", "wait for train.log_every steps")]
    of = f"{run.done:,} of {run.steps:,} steps" if run.steps else f"{run.done:,} steps"
    if run.error is not None:
        return [Finding("died", run.done - 1, f"it failed after {of}", run.error)]
    if run.steps is None or run.done >= run.steps:
        return []
    if run.ended is not None:
        advice = "the same pretrain command goes on from here"
        return [_note("incomplete", f"stopped by a signal or train.max_minutes after {of}", advice)]
    if run.quiet_seconds > max(_QUIET, _WINDOWS * _window_seconds(run)):
        text = f"it has written nothing for {run.quiet_seconds / 60:.0f} minutes, after {of}"
        advice = (
            "it was probably killed (memory?); the same pretrain command goes on from the last "
            "checkpoint"
        )
        return [Finding("died", run.done - 1, text, advice)]
    return [_note("running", f"it is running: {of}", "judge again when it is done")]


def _ledger(run: RunFiles) -> list[Finding]:
    count, batch = sum(run.unreadable.values()), _number(run.config, "train", "batch")
    seen = run.done * (batch or 0)
    if not count or (seen and count <= _UNREADABLE_SHARE * seen):
        return []
    reasons = ", ".join(f"{reason} ({n})" for reason, n in run.unreadable.most_common(3))
    text = f"{count:,} samples could not be read and were replaced: {reasons}"
    return [Finding("data", None, text, "rebuild or fetch the shards that unreadable.jsonl names")]


def _length(run: RunFiles) -> list[Finding]:
    found = []
    steps, ema = run.steps, _number(run.config, "train", "ema")
    if (run.config.get("train") or {}).get("objective", "jepa") != "jepa":
        ema = None  # a baseline keeps no average
    if steps and steps < _FEW_STEPS:
        text = f"a run of {steps} steps is too short to compare features by"
        found.append(_note("short", text, "it shows that the parts work; train longer"))
    if steps and 2 * run.warmup_steps > steps:
        text = f"warm-up takes {run.warmup_steps:,} of {steps:,} steps"
        found.append(_note("short", text, "lower train.warmup_steps or train longer"))
    if steps and ema and ema < 1 and 1 / (1 - ema) > _LAG_SHARE * steps:
        text = f"the target averages over {1 / (1 - ema):,.0f} of {steps:,} steps"
        found.append(_note("short", text, "lower train.ema, or train longer"))
    if run.records and not any("monitor/encoder_rank" in record for record in run.records):
        text = "no monitor was read, so collapse and a dead text path would go unseen"
        found.append(_note("blind", text, "set train.monitor_every to a tenth of the run or less"))
    return found


def _window_seconds(run: RunFiles) -> float:
    """Return how long the run takes between two writes of its log [s]."""
    batch, every = (_number(run.config, "train", key) for key in ("batch", "log_every"))
    speeds = [r["images_per_s"] for r in run.records if isinstance(r.get("images_per_s"), float)]
    if not speeds or not batch or not every:
        return 0.0
    return batch * every / max(float(median(float(s or 0.0) for s in speeds)), 1e-6)


def _number(config: dict[str, Any], section: str, key: str) -> float | None:
    value = (config.get(section) or {}).get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _note(name: str, text: str, advice: str) -> Finding:
    return Finding(name, None, text, advice, is_note=True)


__all__ = ["judge"]
