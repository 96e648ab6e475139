"""What the trials of a study measured, gathered from their folders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pipeline.settings import ConfigError
from tcjepa.ablate.study import StudyConfig, Trial, trials_of
from tcjepa.ablate.trial import evaluation_settings, is_finished
from tcjepa.evaluate.report import EvaluationResult, measures
from tcjepa.evaluation import TRAINED, UNTRAINED
from tcjepa.train.log import read
from tcjepa.train.run import EVALUATION_FILE

#: Keys of the training log -> their names in a report: how the text path ended.
TRAINING: Final = {
    "predict": "prediction loss",
    "monitor/text_gain": "text gain (training images)",
    "sparse": "sparsity loss",
    "positive_share": "positive similarities",
    "attention_entropy": "attention entropy",
    "wordless_patches": "patches without a positive word",
}


@dataclass(frozen=True)
class Outcome:
    """A finished trial: measure name -> value, of the trained encoder and of its random twin.

    `training` holds the last readings of the training log that `TRAINING` names.
    """

    trial: Trial
    values: dict[str, float]
    random: dict[str, float]
    training: dict[str, float] = field(default_factory=dict)


def outcomes(study: StudyConfig) -> list[Outcome]:
    """Return the outcomes of the trials that are finished, in trial order.

    Raises `ConfigError` if one was evaluated again with other settings than the study's.
    """
    found = []
    for trial in trials_of(study):
        path = Path(trial.folder) / EVALUATION_FILE
        if is_finished(trial):
            rows = json.loads(path.read_text())
            if rows["settings"] != evaluation_settings(trial):
                raise ConfigError(
                    f"{path} was written with other evaluate.* settings than the study's; remove "
                    "it and run the study again, which evaluates it anew"
                )
            trained, untrained = (
                EvaluationResult.from_json(json.dumps(rows[name])) for name in (TRAINED, UNTRAINED)
            )
            training = _last_readings(Path(trial.folder))
            found.append(Outcome(trial, _values(trained), _values(untrained), training))
    return found


def _last_readings(folder: Path) -> dict[str, float]:
    readings: dict[str, float] = {}
    for record in read(folder):
        for key, name in TRAINING.items():
            value = record.get(key)
            if value is not None:
                readings[name] = float(value)
    return readings


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
                "training": outcome.training,
            }
        )
        for outcome in found
    ]
    path.write_text("".join(line + "\n" for line in lines))
