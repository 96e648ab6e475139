"""Tables and plots of studies, from the `result.json` that a study leaves.

    <!-- study: noise.json arms -->           also contrasts, slopes, training, runs, missing,
    …                                         overrides, or "won back" and a recovery's name
    <!-- /study -->

    <!-- plot: noise.json curves noise.png    the picture, and the file it is drawn into
    measures: linear * | text gain
    arms: I-JEPA | * rate 0.4
    -->
    ![…](results/noise.png)
    <!-- /plot -->

Lines below the first narrow a study to what its names match, as in a shell; both kinds take them.

matplotlib's bytes differ between versions, so a plot is judged by what it was drawn from: its file
holds a hash of those numbers, and is drawn again only if they changed, or it is gone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tcjepa.ablate import tables
from tcjepa.ablate.plots import Picture, pictures
from tcjepa.ablate.schema import StudyResult
from tcjepa.ablate.tables import Table
from tcjepa.figures.markers import FigureError
from tcjepa.figures.values import ResultFiles

_TABLES: Final[dict[str, Callable[[StudyResult], Table]]] = {
    "arms": tables.arms_table,
    "contrasts": tables.contrasts_table,
    "slopes": tables.slopes_table,
    "training": tables.training_table,
    "runs": tables.runs_table,
    "missing": tables.missing_table,
    "overrides": tables.overrides_table,
}
_NARROWING: Final = ("measures", "arms")
_DRAWN: Final = {"name", "x", "measures", "arms", "curves", "trials", "estimates", "contrasts"} | {
    "recoveries"
}
_HASH: Final = "drawn from sha256:"


def study_table(rest: str, files: ResultFiles) -> str:
    """Return a table of a study, under what there is to know about it."""
    name, _, wanted = rest.partition("\n")[0].strip().partition(" ")
    result = _study(name, rest, files)
    found = {key: make(result) for key, make in _TABLES.items()}
    for record in result.recoveries:
        found[f"won back {record.name}"] = tables.recovery_table(result, record)
    table = found.get(wanted.strip())
    if table is None:
        raise FigureError(f"{name} has no table {wanted!r}; there is {', '.join(found)}")
    if not table.rows:
        raise FigureError(f"the table {wanted} of {name} has no rows")
    heading, _, text = tables.as_markdown(table).partition("\n\n")
    assert heading.startswith("#"), heading
    return text


def plot(rest: str, files: ResultFiles, page: Path, write: bool) -> str:
    """Return the link to a study's picture; draw it, with `write`, if its numbers changed."""
    words = rest.partition("\n")[0].split()
    name, file = (words[0], Path(words[-1])) if words else ("", Path())
    if len(words) < 3 or file.suffix not in (".png", ".svg") or file.name != str(file):
        raise FigureError("plot takes a file, a picture of the study, and NAME.png or NAME.svg")
    wanted = " ".join(words[1:-1])
    result = _study(name, rest, files)
    found = {picture.name: picture for picture in pictures(result)}
    if wanted not in found:
        raise FigureError(f"{name} has no picture {wanted!r}; there is {', '.join(found)}")
    path = files.folder / file
    digest = _digest(result, wanted)
    if not (path.exists() and f"{_HASH}{digest}".encode() in path.read_bytes()):
        if not write:
            state = "is drawn from other numbers" if path.exists() else "is not drawn"
            raise FigureError(f"{file} {state}: `make figures` draws it")
        path.write_bytes(_content(found[wanted], file.suffix, digest))
    return f"![{found[wanted].caption}]({os.path.relpath(path, page.parent)})"


def narrowed(result: StudyResult, measures: Iterable[str], arms: Iterable[str]) -> StudyResult:
    """Return a study's results of some measures and arms only; the names are of both."""
    keep, own = set(measures), set(arms)
    cut = {curve.name for curve in result.curves if not {p[1] for p in curve.points} <= own}

    def some(values: dict[str, Any], names: set[str] = keep) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in names}

    return result.model_copy(
        update={
            "measures": tuple(m for m in result.measures if m.name in keep),
            "arms": tuple(arm for arm in result.arms if arm.name in own),
            "curves": tuple(
                curve.model_copy(update={"points": points})
                for curve in result.curves
                if (points := tuple(p for p in curve.points if p[1] in own))
            ),
            "trials": tuple(
                trial.model_copy(update={"values": some(trial.values)})
                for trial in result.trials
                if trial.arm in own
            ),
            "missing": tuple(run for run in result.missing if run.arm in own),
            "estimates": {m: some(of, own) for m, of in some(result.estimates).items()},
            "contrasts": tuple(
                record.model_copy(update={"measures": some(record.measures)})
                for record in result.contrasts
                if {record.better, record.worse} <= own
            ),
            "slopes": tuple(
                record.model_copy(update={"measures": some(record.measures)})
                for record in result.slopes
                if record.curve not in cut  # fitted to arms that are not shown
            ),
            "recoveries": tuple(
                record.model_copy(
                    update={
                        "losses": some(record.losses),
                        "shares": {a: some(of) for a, of in some(record.shares, own).items()},
                    }
                )
                for record in result.recoveries
            ),
        }
    )


def _study(name: str, rest: str, files: ResultFiles) -> StudyResult:
    """Return a file's study, narrowed as the lines below the first say."""
    try:
        result = StudyResult.model_validate(files[name])
    except ValidationError as error:
        raise FigureError(f"{name} is no result of a study: {error.errors()[0]['msg']}") from error
    kinds = {"measures": [m.name for m in result.measures], "arms": [a.name for a in result.arms]}
    wanted = dict(kinds)
    for line in filter(None, map(str.strip, rest.splitlines()[1:])):
        key, _, patterns = line.partition(":")
        if key not in kinds:
            raise FigureError(f"{line!r} is not {' or '.join(_NARROWING)}: NAME | NAME")
        wanted[key] = []
        for pattern in (text.strip() for text in patterns.split("|")):
            found = [name for name in kinds[key] if fnmatchcase(name, pattern)]
            if not found:
                raise FigureError(f"{name} has no {key} {pattern!r}; there is {kinds[key]}")
            wanted[key] += found
    return narrowed(result, wanted["measures"], wanted["arms"])


def _digest(result: StudyResult, picture: str) -> str:
    drawn = [picture, result.model_dump(mode="json", include=_DRAWN)]
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()


def _content(picture: Picture, suffix: str, digest: str) -> bytes:
    """Return a picture's file with the hash of its numbers in it."""
    if suffix == ".svg":
        return picture.content("svg") + f"<!-- {_HASH}{digest} -->\n".encode()
    from PIL import Image, PngImagePlugin

    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", f"{_HASH}{digest}")
    out = io.BytesIO()
    Image.open(io.BytesIO(picture.content("png"))).save(out, "PNG", pnginfo=words, optimize=True)
    return out.getvalue()


__all__ = ["narrowed", "plot", "study_table"]
