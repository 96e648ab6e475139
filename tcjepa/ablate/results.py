"""What the trials of a study measured, gathered from their folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tcjepa.ablate.study import StudyConfig, Trial, trials_of
from tcjepa.evaluate.report import EvaluationResult, measures
from tcjepa.evaluation import TRAINED, UNTRAINED
from tcjepa.train.run import EVALUATION_FILE


@dataclass(frozen=True)
class Outcome:
    """A finished trial: measure name -> value, of the trained encoder and of its random twin."""

    trial: Trial
    values: dict[str, float]
    random: dict[str, float]


def outcomes(study: StudyConfig) -> list[Outcome]:
    """Return the outcomes of the trials that are finished, in trial order."""
    found = []
    for trial in trials_of(study):
        path = Path(trial.folder) / EVALUATION_FILE
        if path.exists():
            rows = json.loads(path.read_text())
            trained, untrained = (
                EvaluationResult.from_json(json.dumps(rows[name])) for name in (TRAINED, UNTRAINED)
            )
            found.append(Outcome(trial, _values(trained), _values(untrained)))
    return found


def _values(result: EvaluationResult) -> dict[str, float]:
    """Return accuracies and mIoU in percent, effective rank, and text gain where there is one."""
    values = {name: 100 * measure.value for name, measure in measures(result).items()}
    if result.spectrum is not None:
        values["effective rank"] = result.spectrum.effective_rank
    if result.text_gain is not None:
        values["text gain"] = result.text_gain
    return values


def write_outcomes(path: Path, found: list[Outcome]) -> None:
    """Write the outcomes as JSON lines, one per trial."""
    lines = [
        json.dumps(
            {
                "arm": outcome.trial.arm.name,
                "seed": outcome.trial.seed,
                "values": outcome.values,
                "random": outcome.random,
            }
        )
        for outcome in found
    ]
    path.write_text("".join(line + "\n" for line in lines))
