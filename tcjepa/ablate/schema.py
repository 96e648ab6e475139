"""`result.json` of a study: everything its report says, small enough to commit.

`python -m tcjepa.ablate.rendering result.json OUT` makes the report, the page and the plots from
this file alone. Numbers are rounded to six digits. Top level:

    format         1
    name           of the study: its directory's last part
    about          what it asks (StudyConfig.asks)
    command        the command that made the file, without the directories of the machine
    commands       how to run it again: the study; then each arm alone with the first seed, its name
                   behind a # (older files: the study only)
    date           when the file was made, UTC, ISO 8601
    hardware       what the runs ran on, in words, such as "NVIDIA H100, 16 cores (60 runs)"
    minutes        wall time of the runs, added up [minutes]; null if no run says
    provenance     a line per kind of run: fingerprints of code and data, versions, number of runs
    mixed          whether runs of different code or data were let in
    settings       of the study, as in its YAML, without directories
    x, seeds       the axis that curves are over; the seeds asked for
    measures       [{name, unit, images, resampled}]: unit "%" (of images, or of pixels) or "";
                   `images` tested on, 0 where the measure has no value per image; `resampled` is
                   "seeds and images" or "seeds": what the bootstrap draws again
    arms           [{name, overrides, role, places}]: role "grid", "reference" or "random weights";
                   places [[[axis, value], …], …], none for the other two
    curves         [{name, points: [[x, arm], …]}], an arm may lie on several
    trials         [{arm, seed, values: {measure: value}, training: {reading: value}, minutes}]; the
                   encoders with random weights are trials of their arms, once per seed
    missing        [{arm, seed, begun, last_words}]: runs without a result
    estimates      {measure: {arm: ESTIMATE}}: means over seeds
    contrasts      [{name, better, worse, measures: {measure: ESTIMATE}}]: better − worse
    slopes         [{curve, measures: {measure: ESTIMATE}, points: {measure: [fitted, all]}}]:
                   change per unit of x, on the seeds that all fitted points have; `points` for
                   measures that some points of the curve lack, as no run of them finished
    recoveries     [{name, clean, noisy, losses: {measure: ESTIMATE}, shares: {arm: {measure:
                   ESTIMATE}}}]: losses clean - noisy, shares (arm - noisy) / (clean - noisy), 1 is
                   all of it; value null where the interval of the loss includes 0
    bootstrap      {replicates, seed, level}

An ESTIMATE is {value, interval, student, seeds}: `interval` [low, high] by the percentile bootstrap
over seeds and test images, `student` by Student's t over seeds (of a share: Fieller's), null where
there is none. See `tcjepa.ablate.intervals` for what they say and what they do not.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.settings import ConfigError
from pipeline.storage import Directory

RESULT_FILE: Final = "result.json"
FORMAT: Final = 1
_DIGITS: Final = 6
MINUS: Final = " − "
"""Stands between the arms of a contrast in its name."""

Scalar = str | int | float | bool | None
Interval = tuple[float, float]
Role = Literal["grid", "reference", "random weights"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Record):
    """A number with its two 95% intervals, and the seeds that it is of."""

    value: float | None
    interval: Interval | None
    student: Interval | None
    seeds: int


class Measured(_Record):
    """A measure that the trials took."""

    name: str
    unit: Literal["%", ""]
    images: int
    resampled: Literal["seeds and images", "seeds"]


class ArmRecord(_Record):
    """An arm and where it lies on the grids."""

    name: str
    overrides: tuple[str, ...] = ()
    role: Role = "grid"
    places: tuple[tuple[tuple[str, Scalar], ...], ...] = ()


class CurveRecord(_Record):
    """Arms that differ in the x axis alone."""

    name: str
    points: tuple[tuple[Scalar, str], ...]


class TrialRecord(_Record):
    """One finished run."""

    arm: str
    seed: int
    values: dict[str, float]
    training: dict[str, float] = {}
    minutes: float | None = None


class MissingRecord(_Record):
    """One run without a result, and the last that it printed if it was begun."""

    arm: str
    seed: int
    begun: bool
    last_words: str = ""


class ContrastRecord(_Record):
    """The difference of two arms, better - worse."""

    name: str
    better: str
    worse: str
    measures: dict[str, Estimate]


class SlopeRecord(_Record):
    """The change of a curve per unit of x, and (fitted, all) points of measures that lack some."""

    curve: str
    measures: dict[str, Estimate]
    points: dict[str, tuple[int, int]] = {}


class RecoveryRecord(_Record):
    """What noise took, and the share of it that each remedy won back."""

    name: str
    clean: str
    noisy: str
    losses: dict[str, Estimate]
    shares: dict[str, dict[str, Estimate]]


class BootstrapRecord(_Record):
    """How the intervals were drawn."""

    replicates: int
    seed: int
    level: float = 0.95


class StudyResult(_Record):
    """A study's results; see the module for what each key holds."""

    format: Literal[1] = FORMAT
    name: str
    about: str = ""
    command: str
    commands: tuple[str, ...] = ()
    date: str
    hardware: str
    minutes: float | None = None
    provenance: tuple[str, ...] = ()
    mixed: bool = False
    settings: dict[str, Any] = {}
    x: str
    seeds: tuple[int, ...]
    measures: tuple[Measured, ...]
    arms: tuple[ArmRecord, ...]
    curves: tuple[CurveRecord, ...] = ()
    trials: tuple[TrialRecord, ...]
    missing: tuple[MissingRecord, ...] = ()
    estimates: dict[str, dict[str, Estimate]]
    contrasts: tuple[ContrastRecord, ...] = ()
    slopes: tuple[SlopeRecord, ...] = ()
    recoveries: tuple[RecoveryRecord, ...] = ()
    bootstrap: BootstrapRecord = Field(BootstrapRecord(replicates=0, seed=0))


def write(result: StudyResult, folder: Path) -> None:
    """Write `result.json` into a folder: a line per run, arm or estimate, so that diffs are read.

    Raises `ValueError` for numbers that are not finite.
    """
    content = _rounded(result.model_dump(mode="json"))
    lines = [f"{json.dumps(key)}: {_laid_out(value, 1)}" for key, value in content.items()]
    Directory(folder).write_text(RESULT_FILE, "{\n " + ",\n ".join(lines) + "\n}\n")


def read(path: Path) -> StudyResult:
    """Return what a `result.json` holds; raises `ConfigError` naming the file where it cannot."""
    try:
        return StudyResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name the result.json of a study") from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} is no result.json of format {FORMAT}, as `python -m tcjepa ablate STUDY "
            f"--report` writes it: {error.errors()[0]['msg']}"
        ) from error


def _laid_out(value: Any, depth: int) -> str:
    """Return JSON with lists and objects of objects opened up and the innermost on one line.

    Lists of text are opened at the top only: a command or a kind of run is a line.
    """
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    is_text = depth == 1 and isinstance(value, list)
    opened = [
        item for item in inner if isinstance(item, dict) or (is_text and isinstance(item, str))
    ]
    if not opened or (depth > 1 and isinstance(value, dict) and "values" in value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = "\n" + " " * (depth + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_laid_out(v, depth + 1)}" for k, v in value.items()]
        return "{" + pad + f",{pad}".join(items) + "}"
    return "[" + pad + f",{pad}".join(_laid_out(item, depth + 1) for item in value) + "]"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    return value


__all__ = [
    "MINUS",
    "RESULT_FILE",
    "ArmRecord",
    "BootstrapRecord",
    "ContrastRecord",
    "CurveRecord",
    "Estimate",
    "Measured",
    "MissingRecord",
    "RecoveryRecord",
    "SlopeRecord",
    "StudyResult",
    "TrialRecord",
    "read",
    "write",
]
