"""What an evaluation found, as JSON, as a table, and as a comparison of two encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from tcjepa.evaluate import grounding
from tcjepa.evaluate.agreement import AgreementResult
from tcjepa.evaluate.grounding import GroundingResult
from tcjepa.evaluate.linear import ProbeResult
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.segmentation import SegmentationResult

_ABSENT = "—"


@dataclass(frozen=True)
class SpectrumResult:
    """Effective rank (RankMe), feature std and LiDAR of the pooled test features of width D."""

    effective_rank: float
    feature_std: float
    width: int
    lidar: float | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """Everything measured on one encoder; accuracies and IoU are shares in [0, 1].

    `linear` and `knn` have one entry per label, `few_shot` one per label and share, such as
    "colour 1%". `agreement` and `grounding` are of the predictor that was trained with the encoder
    (see `text_path`). `notes` are caveats a reader must know.
    """

    train_images: int
    test_images: int
    linear: dict[str, ProbeResult]
    knn: dict[str, Measure]
    segmentation: SegmentationResult | None
    spectrum: SpectrumResult | None
    few_shot: dict[str, ProbeResult] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    agreement: AgreementResult | None = None
    grounding: GroundingResult | None = None

    @property
    def text_gain(self) -> float | None:
        """Prediction error with captions of other images minus that with the right ones."""
        return None if self.agreement is None else self.agreement.gain.value

    def to_json(self) -> str:
        """Return the result as indented JSON that `from_json` reads back unchanged."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """Return the result a JSON text holds; raises `ValueError` where it holds another thing.

        Tasks that an older version did not have are None.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"not an evaluation result: {error}") from error


_ADAPTER = TypeAdapter(EvaluationResult)


@dataclass(frozen=True)
class Comparison:
    """How far encoder A is ahead of B in one measure: a difference and its standard error."""

    measure: str
    difference: float
    error: float

    @property
    def standard_errors(self) -> float:
        """The difference in units of its standard error."""
        if self.error > 0:
            return self.difference / self.error
        return math.copysign(math.inf, self.difference) if self.difference else 0.0

    def __str__(self) -> str:
        ahead = "ahead" if self.difference >= 0 else "behind"
        return (
            f"{self.measure}: {abs(100 * self.difference):.1f} points {ahead}, "
            f"{abs(self.standard_errors):.1f} standard errors"
        )


def measures(result: EvaluationResult) -> dict[str, Measure]:
    """Return every share that has a standard error, by its column name."""
    found = {f"linear {name}": probe.accuracy for name, probe in result.linear.items()}
    found |= {f"few-shot {name}": probe.accuracy for name, probe in result.few_shot.items()}
    if result.segmentation is not None:
        found["mIoU"] = result.segmentation.miou
    if result.grounding is not None:
        found |= {
            grounding.POINTING: result.grounding.pointing,
            grounding.CHANCE: result.grounding.chance,
            grounding.MIOU: result.grounding.miou,
        }
        if result.grounding.specificity is not None:
            found[grounding.SPECIFICITY] = result.grounding.specificity
    return found | {f"kNN {name}": value for name, value in result.knn.items()}


def comparison(a: EvaluationResult, b: EvaluationResult) -> list[Comparison]:
    """Return by how many standard errors A beats B in each measure that both have.

    The error of a difference is √(e_A² + e_B²) of the larger errors (see `measure`). Where both
    were tested on the same images their sampling errors are correlated, so this errs towards
    calling a difference smaller than it is. It speaks of these two encoders, not of the methods
    that trained them: for those, repeat the training.
    """
    first, second = measures(a), measures(b)
    return [
        Comparison(
            name,
            first[name].value - second[name].value,
            math.hypot(first[name].error, second[name].error),
        )
        for name in first
        if name in second
    ]


def format_table(rows: Mapping[str, EvaluationResult]) -> str:
    """Return a plain-text table with one line per encoder; shares in percent, — where undefined.

    `±` is one standard error: the larger of that over probe seeds and that of the test set.
    Prediction error (with the right captions) and text gain are in the unit of Eq. 1, not in
    percent. Notes follow, each once per encoder.
    """
    columns = _columns(list(rows.values()))
    head = ["encoder", *columns]
    body = [[name, *(cell(result) for cell in columns.values())] for name, result in rows.items()]
    widths = [max(len(line[index]) for line in [head, *body]) for index in range(len(head))]
    lines = [_aligned(line, widths) for line in [head, ["-" * width for width in widths], *body]]
    notes = [f"{name}: {note}" for name, result in rows.items() for note in result.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _columns(results: Sequence[EvaluationResult]) -> dict[str, Callable[[EvaluationResult], str]]:
    shared = {name: None for result in results for name in measures(result)}
    columns: dict[str, Callable[[EvaluationResult], str]] = {
        name: lambda result, name=name: _share(measures(result).get(name))  # type: ignore[misc]
        for name in shared
    }
    columns["effective rank"] = _rank
    if any(result.spectrum and result.spectrum.lidar is not None for result in results):
        columns["LiDAR"] = _lidar
    columns["prediction error"] = lambda result: _error(result, "right")
    columns["text gain"] = lambda result: _error(result, "gain")
    return columns


def _share(measure: Measure | None) -> str:
    if measure is None:
        return _ABSENT
    return f"{100 * measure.value:.1f} ± {100 * measure.error:.1f}"


def _rank(result: EvaluationResult) -> str:
    if result.spectrum is None:
        return _ABSENT
    return f"{result.spectrum.effective_rank:.1f} of {result.spectrum.width}"


def _lidar(result: EvaluationResult) -> str:
    value = result.spectrum.lidar if result.spectrum else None
    return _ABSENT if value is None else f"{value:.1f}"


def _error(result: EvaluationResult, which: Literal["right", "gain"]) -> str:
    if result.agreement is None:
        return _ABSENT
    measure = result.agreement.right if which == "right" else result.agreement.gain
    return f"{measure.value:.4f} ± {measure.error:.4f}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


__all__ = [
    "Comparison",
    "EvaluationResult",
    "SpectrumResult",
    "comparison",
    "format_table",
    "measures",
]
