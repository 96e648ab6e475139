"""The report of a study: its `result.json`, and what is rendered from that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tcjepa.ablate import schema
from tcjepa.ablate.rendering import render
from tcjepa.ablate.results import Outcome
from tcjepa.ablate.study import StudyConfig
from tcjepa.ablate.summary import summarise


def write_report(
    study: StudyConfig, found: Sequence[Outcome], command: str = "python -m tcjepa ablate"
) -> str:
    """Write result, report, page and figures into the study's directory; return the report.

    `command` is what was asked for, to be asked again. Raises `ConfigError` if the results are of
    different code or data and `study.mixed` is false.
    """
    root = Path(study.run)
    schema.write(summarise(study, found, command), root)
    # From the file, not from memory: the committed file must be enough.
    return render(schema.read(root / schema.RESULT_FILE), root)


__all__ = ["write_report"]
