"""Folders of trials as finished runs leave them, made up: what a report is written from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tcjepa.ablate.provenance import PROVENANCE
from tcjepa.ablate.study import StudyConfig, Trial, training_config, trials_of
from tcjepa.ablate.trial import write_config
from tcjepa.evaluate.linear import ProbeResult
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.report import EvaluationResult, SpectrumResult
from tcjepa.evaluate.segmentation import SegmentationResult
from tcjepa.evaluate.tally import TALLIES_FILE, Tally, to_bytes
from tcjepa.evaluation import TRAINED, UNTRAINED, to_json
from tcjepa.train.log import LOG_FILE, STATUS_FILE
from tcjepa.train.run import EVALUATION_FILE

RANDOM_LEVEL = 0.25
LABELS = ("colour", "shape")


def pretend(
    study: StudyConfig, base: Path, level: Callable[[Trial], float], images: int = 80
) -> None:
    """Write what every trial of the study would leave, with hits at about `level(trial)`."""
    for trial in trials_of(study):
        finish(study, trial, base, level(trial), images)


def finish(study: StudyConfig, trial: Trial, base: Path, level: float, images: int = 80) -> None:
    """Write what one trial would leave; seeds differ by a little."""
    config = training_config(study, trial, base)
    write_config(trial, config)
    folder = Path(trial.folder)
    luck = np.random.default_rng([trial.seed, *trial.arm.name.encode()])
    level += 0.02 * float(np.random.default_rng(trial.seed).normal()) + 0.005 * float(luck.normal())
    trained, tallies = _evaluated(luck, level, images)
    untrained, chance = _evaluated(np.random.default_rng(trial.seed), RANDOM_LEVEL, images)
    content = {
        **to_json({TRAINED: trained, UNTRAINED: untrained}, 6),
        "settings": config.evaluate.model_dump(mode="json"),
        "hardware": "Pretended, 2 cores",
        "minutes": 1.5,
    }
    named = {f"{TRAINED}/{name}": tally for name, tally in tallies.items()}
    named |= {f"{UNTRAINED}/{name}": tally for name, tally in chance.items()}
    (folder / TALLIES_FILE).write_bytes(to_bytes(named))
    (folder / EVALUATION_FILE).write_text(json.dumps(content))
    (folder / STATUS_FILE).write_text(json.dumps({"steps": 6}))
    (folder / LOG_FILE).write_text(json.dumps({"step": 5, "predict": 2 - level}) + "\n")
    made_by = {"code": "c0de", "data": "da7a", "torch": "2", "timm": "1", "python": "3"}
    (folder / PROVENANCE).write_text(json.dumps(made_by))


def _evaluated(
    draw: np.random.Generator, level: float, images: int
) -> tuple[EvaluationResult, dict[str, Tally]]:
    keys = [f"image {i}" for i in range(images)]
    hard = np.random.default_rng(99).normal(0, 0.15, images)  # of the images, the same for all
    shares = np.clip(level + hard, 0, 1)
    tallies = {}
    for label in LABELS:
        tallies[f"linear {label}"] = Tally.of_values(keys, draw.random(images) < shares)
        tallies[f"kNN {label}"] = Tally.of_values(keys, draw.random(images) < 0.8 * shares)
    union = draw.integers(0, 256, (images, 4))
    tallies["mIoU"] = Tally.of_ratios(keys, draw.binomial(union, 0.7 * shares[:, None]), union)
    value = {name: Measure.over_seeds([t.value], 0.01) for name, t in tallies.items()}
    result = EvaluationResult(
        train_images=100,
        test_images=images,
        linear={n: ProbeResult(value[f"linear {n}"], 0.25, 4, (), ()) for n in LABELS},
        knn={n: value[f"kNN {n}"] for n in LABELS},
        segmentation=SegmentationResult(value["mIoU"], 0.5, {}, (), (), 100, images),
        spectrum=SpectrumResult(10 * level, 1.0, 16),
    )
    return result, tallies
