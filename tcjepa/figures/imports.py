"""Result files out of runs: `python -m tcjepa.figures import RUN docs/results/NAME.json …`."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.settings import ConfigError
from tcjepa.figures.values import PROVENANCE

EVALUATION, STUDY = "evaluation.json", "result.json"
_POINTS: Final = ".1f±"


def import_run(run: Path, file: Path, about: dict[str, str]) -> None:
    """Write a run's evaluation, or a study's result, as a result file.

    `about` may hold the `command` that made it, its `hardware`, and what it is `about`; a study
    knows these itself. Raises `ConfigError` if the folder holds neither, or not all is known.
    """
    if (run / STUDY).is_file():
        content = json.loads((run / STUDY).read_text())
        text = (run / STUDY).read_text()
        if about:
            text = _json(content | about)
    elif (run / EVALUATION).is_file():
        content = about | _evaluation(run / EVALUATION)
        text = _json(content)
    else:
        raise ConfigError(f"{run} holds neither {EVALUATION} (of a run) nor {STUDY} (of a study)")
    lacks = [key for key in PROVENANCE if not {**content, **about}.get(key)]
    if lacks:
        raise ConfigError(f"{run} does not say its {', '.join(lacks)}: give --{' --'.join(lacks)}")
    file.write_text(text)


def _evaluation(path: Path) -> dict[str, Any]:
    """Return both encoders' measures and their differences as a table, a row per measure."""
    from tcjepa.evaluate.report import EvaluationResult, measures
    from tcjepa.evaluation import TRAINED, UNTRAINED

    found = json.loads(path.read_text())
    trained, untrained = (
        EvaluationResult.from_json(json.dumps(found[name])) for name in (TRAINED, UNTRAINED)
    )
    rows: dict[str, dict[str, Any]] = {}
    theirs = measures(untrained)
    for name, ours in measures(trained).items():
        rows[f"{name}, %"] = {TRAINED: _points(ours.value, ours.error)}
        if other := theirs.get(name):
            error = math.hypot(ours.error, other.error)
            rows[f"{name}, %"] |= {
                UNTRAINED: _points(other.value, other.error),
                "difference": _points(ours.value - other.value, error),
            }
    for name, result in ((TRAINED, trained), (UNTRAINED, untrained)):
        if result.spectrum is not None:
            row = rows.setdefault(f"effective rank of {result.spectrum.width}", {})
            row[name] = {"value": result.spectrum.effective_rank, "form": ".1f"}
    if trained.text_gain is not None:
        rows["text gain"] = {TRAINED: {"value": trained.text_gain, "form": ".4f"}}
    when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "date": when.isoformat(timespec="seconds"),
        "step": found["step"],
        "images": {"train": trained.train_images, "test": trained.test_images},
        "encoders": rows,
    }


def _points(share: float, error: float) -> dict[str, Any]:
    return {"value": 100 * share, "error": 100 * error, "form": _POINTS}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


__all__ = ["import_run"]
