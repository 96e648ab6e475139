"""All pages of the repository: what they should hold, what they do hold, and the difference."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tcjepa.figures.blocks import passage
from tcjepa.figures.markers import FigureError, Marker, markers, rewritten
from tcjepa.figures.unmarked import RESULT_PAGES, unmarked
from tcjepa.figures.values import ResultFiles

RESULTS: Final = Path("docs/results")


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be, where it stands, and what it should be."""

    page: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.message}"


def pages(root: Path) -> list[Path]:
    """Return README and every Markdown page under docs, sorted."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def build(root: Path, write: bool) -> tuple[list[Problem], list[Problem]]:
    """Generate every marked passage of every page.

    Returns errors (markers that cannot be followed, results without one), then the differences
    between what is there and what the result files give. With `write` these are written, but for
    pages with a marker that cannot be followed.
    """
    files = ResultFiles(root / RESULTS)
    errors: list[Problem] = []
    stale: list[Problem] = []
    for path in pages(root):
        page = path.relative_to(root).as_posix()
        text = path.read_text()
        found, faults = markers(text)
        wrong = [Problem(page, fault.line, fault.message) for fault in faults]
        made: dict[Marker, str] = {}
        for marker in found:
            try:
                made[marker] = passage(marker, files, path, write)
            except FigureError as error:
                wrong.append(Problem(page, marker.line, f"{marker} {error}"))
        errors += wrong
        if page in RESULT_PAGES:
            errors += [Problem(page, fault.line, fault.message) for fault in unmarked(text, found)]
        if write and wrong:
            continue
        stale += _differences(page, text, made)
        if write:
            new = rewritten(text, found, made.__getitem__)
            if new != text:
                path.write_text(new)
    return errors, stale


def _differences(page: str, text: str, made: dict[Marker, str]) -> Iterator[Problem]:
    for marker, new in made.items():
        old = text[marker.start : marker.end]
        if old != new:
            yield Problem(page, marker.line, f"{marker} {_difference(old, new)}")


def _difference(old: str, new: str) -> str:
    if "\n" not in old + new:
        return f"holds {old!r}, the result file gives {new!r}"
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    return "differs (- is there, + is what the result file gives):\n" + "\n".join(
        f"    {line}" for line in changed
    )


__all__ = ["RESULTS", "Problem", "build", "pages"]
