"""Result files out of runs: `python -m tcjepa.figures import RUN docs/results/NAME.json …`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.settings import ConfigError
from tcjepa.figures.values import PROVENANCE

if TYPE_CHECKING:  # torch takes seconds to import, and building pages needs none
    from tcjepa.evaluate.report import EvaluationResult

EVALUATION, STUDY = "evaluation.json", "result.json"


def import_run(run: Path, file: Path, about: dict[str, str]) -> None:
    """Write a run's evaluation, or a study's result, as a result file.

    A study's file is copied as it is. `about` says what a run cannot know, its `command`, and
    may say what it is `about` and its `hardware`. Raises `ConfigError` if the folder holds neither,
    or not all is known.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}")
    if (run / STUDY).is_file():
        if about:
            raise ConfigError(f"{run / STUDY} says its {', '.join(about)} itself: leave that out")
        file.write_bytes((run / STUDY).read_bytes())
        return
    if not (run / EVALUATION).is_file():
        raise ConfigError(f"{run} holds neither {EVALUATION} (of a run) nor {STUDY} (of a study)")
    content = _evaluation(run / EVALUATION) | about
    lacks = [key for key in PROVENANCE if not content.get(key)]
    if lacks:
        raise ConfigError(f"{run} does not say its {', '.join(lacks)}: give --{' --'.join(lacks)}")
    order = dict.fromkeys(("about", *PROVENANCE))
    content = {key: content[key] for key in order | content if key in content}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _evaluation(path: Path) -> dict[str, Any]:
    """Return both encoders' measures and their differences as a table, a row per measure."""
    from tcjepa.evaluate.report import EvaluationResult, comparison, measures
    from tcjepa.evaluation import TRAINED, UNTRAINED

    found = json.loads(path.read_text())
    results = {
        name: EvaluationResult.from_json(json.dumps(found[name])) for name in (TRAINED, UNTRAINED)
    }
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    for encoder, result in results.items():
        for name, share in measures(result).items():
            rows[f"{name}, %"][encoder] = _points(share.value, share.error)
    for difference in comparison(results[TRAINED], results[UNTRAINED]):
        points = _points(difference.difference, difference.error)
        rows[f"{difference.measure}, %"]["difference"] = points
    for encoder, result in results.items():
        for name, cell in _others(result):
            rows[name][encoder] = cell
    when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "date": when.isoformat(timespec="seconds"),
        "hardware": found.get("hardware"),
        "minutes": found.get("minutes"),
        "step": found["step"],
        "images": {
            "train": results[TRAINED].train_images,
            "test": results[TRAINED].test_images,
        },
        "encoders": rows,
    }


def _others(result: EvaluationResult) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is no share: spectrum and prediction errors."""
    from tcjepa.evaluate.agreement import GAIN, NONE, RIGHT, SWAPPED

    if result.spectrum is not None:
        rank = {"value": result.spectrum.effective_rank, "form": ".1f"}
        yield f"effective rank of {result.spectrum.width}", rank
        if result.spectrum.lidar is not None:
            yield "LiDAR", {"value": result.spectrum.lidar, "form": ".1f"}
    if (errors := result.agreement) is not None:
        for name, measure in (
            (RIGHT, errors.right),
            (SWAPPED, errors.swapped),
            (NONE, errors.none),
            (GAIN, errors.gain),
        ):
            yield name, {"value": measure.value, "error": measure.error, "form": ".3f±"}


def _points(share: float, error: float) -> dict[str, Any]:
    return {"value": 100 * share, "error": 100 * error, "form": ".1f±"}


__all__ = ["import_run"]
