"""A study's report as one page: no script, no network, readable on a phone and on paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from tcjepa.ablate import tables
from tcjepa.ablate.plots import Picture
from tcjepa.ablate.schema import StudyResult


def page(result: StudyResult, drawn: Sequence[Picture], summary: Sequence[str]) -> str:
    """Return the page as HTML; everything from the result is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tcjepa", "ablate"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    figures = [(picture.caption, _data_uri(picture)) for picture in drawn]
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        result=result,
        summary=summary,
        figures=figures,
        tables=tables.tables(result),
        missing=tables.missing_table(result),
        runs=tables.runs_table(result),
        overrides=tables.overrides_table(result),
        settings=json.dumps(result.settings, indent=1, ensure_ascii=False),
    )


def _data_uri(picture: Picture) -> str:
    """Return a figure as an image of its own: its ids and fonts cannot meet those of the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.content('svg')).decode()}"


__all__ = ["page"]
