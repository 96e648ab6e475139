"""What the trials of a study measured, gathered from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.settings import ConfigError
from tcjepa.ablate import kept
from tcjepa.ablate.study import StudyConfig, Trial, trials_of
from tcjepa.ablate.trial import is_finished, own_config
from tcjepa.config import TrainConfig
from tcjepa.evaluate import agreement, grounding
from tcjepa.evaluate.report import EvaluationResult, measures
from tcjepa.evaluate.tally import TALLIES_FILE, Tally, from_bytes, images_in
from tcjepa.evaluation import TRAINED, UNTRAINED
from tcjepa.train.log import read
from tcjepa.train.run import EVALUATION_FILE

_Content = TypeVar("_Content")

#: Keys of the training log -> their names in a report: how the text path ended.
TRAINING: Final = {
    "predict": "prediction loss",
    "monitor/text_gain": "text gain (training images)",
    "sparse": "sparsity loss",
    "positive_share": "positive similarities",
    "attention_entropy": "attention entropy",
    "wordless_patches": "patches without a positive word",
}
RANK: Final = "effective rank"
LIDAR: Final = "LiDAR"
STD: Final = "feature std"
#: Measures that are no shares; all others are given in percent.
UNITLESS: Final = frozenset(
    {RANK, LIDAR, STD, agreement.RIGHT, agreement.SWAPPED, agreement.NONE, agreement.GAIN}
)


def is_of_text_path(name: str) -> bool:
    """Return whether a measure is of the predictor and its text, besides the encoder."""
    return name in _OF_TEXT_PATH


def can_be_lost(name: str) -> bool:
    """Return whether more of a measure is better, so that noise can cost some of it.

    Rank and spread can rise for bad reasons, and prediction errors are of a loss that each arm has
    for itself.
    """
    return name not in {*UNITLESS, grounding.CHANCE} or name == agreement.GAIN


_OF_TEXT_PATH: Final = frozenset(
    {
        agreement.RIGHT, agreement.SWAPPED, agreement.NONE, agreement.GAIN,
        grounding.POINTING, grounding.CHANCE, grounding.MIOU, grounding.OTHER,
        grounding.SPECIFICITY,
    }
)  # fmt: skip
#: What agreement alone is measured under; grounding shows every patch in both roles.
_OF_MASKS: Final = frozenset({agreement.RIGHT, agreement.SWAPPED, agreement.NONE, agreement.GAIN})
#: What is shown of captions, which probes of the encoder do not read.
_SHOWN: Final = ("captioned_images", "captions_per_image", "caption_sources")
#: What a random twin's text path, and what is measured of it, depend on besides encoder, seed and
#: what it is tested on.
_TEXT_PATH: Final = (
    "model.text", "model.predictor", "text", *(f"evaluate.{key}" for key in _SHOWN),
)  # fmt: skip
#: Keys of `evaluate` that say which measures there are: each has its value whatever they say.
_WHICH: Final = ("tasks", "labels", "few_shot")


@dataclass(frozen=True)
class Outcome:
    """A finished trial: measure name -> value, of the trained encoder and of its random twin.

    `training` holds the last readings of the training log that `TRAINING` names; `minutes` and
    `hardware` are None where the evaluation does not say. Trials of a seed with the same `encoder`
    have the same random twin as far as they are `tested` alike (images, probes); a measure of the
    text path is the same only if `text_path` is (predictor, text encoder, the captions that they
    are tested with), and agreement only if `masks` are, too.
    """

    trial: Trial
    values: dict[str, float]
    random: dict[str, float]
    training: dict[str, float] = field(default_factory=dict)
    minutes: float | None = None
    hardware: str | None = None
    encoder: str = ""
    tested: str = ""
    text_path: str = ""
    masks: str = ""

    def twin_of(self, measure: str) -> tuple[str, str, str]:
        """Return what tells random twins of one encoder and seed apart in a measure."""
        text_path = self.text_path if is_of_text_path(measure) else ""
        return self.tested, text_path, self.masks if measure in _OF_MASKS else ""


def outcomes(study: StudyConfig) -> list[Outcome]:
    """Return the outcomes of the trials that are finished, in trial order.

    Raises `ConfigError` if one was evaluated again with other settings than the study's, or its
    evaluation is damaged.
    """
    return [_outcome(trial) for trial in trials_of(study) if is_finished(trial)]


def measure_names(found: Sequence[Outcome]) -> list[str]:
    """Return the names of all measures, in the order in which they first occur."""
    return list(dict.fromkeys(name for outcome in found for name in outcome.values))


def scale(name: str) -> float:
    """Return what a measure is multiplied by for people: 100 for a share."""
    return 1.0 if name in UNITLESS else 100.0


def tallies(outcome: Outcome) -> dict[str, dict[str, Tally]]:
    """Return the tallies of a trial: encoder row -> measure -> tally; {} if it kept none.

    Raises `ConfigError` for a damaged file, as `images` does.
    """
    found: dict[str, dict[str, Tally]] = {}
    for name, tally in (_kept(outcome, from_bytes) or {}).items():
        row, _, measure = name.partition("/")
        found.setdefault(row, {})[measure] = tally
    return found


def images(found: Sequence[Outcome]) -> list[str]:
    """Return the keys of all test images that any of the trials tallied, each once."""
    kept = (_kept(outcome, images_in) or [] for outcome in found)
    return list(dict.fromkeys(key for keys in kept for key in keys))


def _kept(outcome: Outcome, read: Callable[[bytes], _Content]) -> _Content | None:
    path = Path(outcome.trial.folder) / TALLIES_FILE
    try:
        return read(path.read_bytes()) if path.exists() else None
    except ValueError as error:
        raise ConfigError(
            f"{path}: {error}; delete it and {EVALUATION_FILE} beside it and run the study again, "
            "which evaluates this run anew"
        ) from error


def _outcome(trial: Trial) -> Outcome:
    path = Path(trial.folder) / EVALUATION_FILE
    rows = json.loads(path.read_text())
    config = own_config(trial)
    if rows.get("settings") != config.evaluate.model_dump(mode="json"):
        raise ConfigError(
            f"{path} was written with other evaluate.* settings than the study's; remove "
            "it and run the study again, which evaluates it anew"
        )
    try:
        trained, untrained = (_values(rows[name]) for name in (TRAINED, UNTRAINED))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: {error}; delete it and run the study again, which evaluates this run anew"
        ) from error
    return Outcome(
        trial,
        trained,
        untrained,
        _last_readings(Path(trial.folder)) | kept.read(Path(trial.folder)),
        rows.get("minutes"),
        rows.get("hardware"),
        _named(config, "model.encoder", "model.encoder_kwargs", "model.init_std"),
        _tested(_as_shown(config)),
        _named(_as_shown(config), *_TEXT_PATH),
        _named(config, "masks"),
    )


def _as_shown(config: TrainConfig) -> TrainConfig:
    """Return a config whose evaluation says itself what it takes from `data` where it is null."""
    own, data = config.evaluate, config.data
    shown = {
        "shards": None if own.is_elsewhere else own.shards or data.shards,
        "captions_per_image": own.captions_per_image or data.captions_per_image,
        "caption_sources": own.caption_sources or data.caption_sources,
    }
    return config.model_copy(update={"evaluate": own.model_copy(update=shown)})


def _tested(config: TrainConfig) -> str:
    """Return a name that two configs, as shown, share if their probes read the same of them."""
    left_out = {*_SHOWN, *_WHICH}
    return json.dumps(config.evaluate.model_dump(mode="json", exclude=left_out), sort_keys=True)


def _named(config: TrainConfig, *keys: str) -> str:
    """Return a name that two configs share if they have the same values of some keys."""
    content = config.model_dump(mode="json")
    return json.dumps([reduce(getitem, key.split("."), content) for key in keys], sort_keys=True)


def _last_readings(folder: Path) -> dict[str, float]:
    readings: dict[str, float] = {}
    for record in read(folder):
        for key, name in TRAINING.items():
            value = record.get(key)
            if value is not None:
                readings[name] = float(value)
    return {name: value for name, value in readings.items() if math.isfinite(value)}


def _values(row: dict[str, Any]) -> dict[str, float]:
    """Return shares in percent, then the measures that are no shares; those that are defined."""
    result = EvaluationResult.from_json(json.dumps(row))
    values = {name: scale(name) * measure.value for name, measure in measures(result).items()}
    if result.spectrum is not None:
        values[RANK] = result.spectrum.effective_rank
        values[STD] = result.spectrum.feature_std
        if result.spectrum.lidar is not None:
            values[LIDAR] = result.spectrum.lidar
    if result.agreement is not None:
        found = result.agreement
        values |= {
            agreement.GAIN: found.gain.value,
            agreement.RIGHT: found.right.value,
            agreement.SWAPPED: found.swapped.value,
            agreement.NONE: found.none.value,
        }
    return {name: value for name, value in values.items() if math.isfinite(value)}


__all__ = [
    "TRAINING",
    "UNITLESS",
    "Outcome",
    "can_be_lost",
    "images",
    "is_of_text_path",
    "measure_names",
    "outcomes",
    "scale",
    "tallies",
]
