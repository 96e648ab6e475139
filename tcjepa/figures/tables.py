"""Tables of result files as Markdown.

A table in a file has one of two shapes:

    {"columns": ["library", "code right"], "forms": ["s", ".3f"], "rows": [["lingua", 0.942]]}
    {"linear colour": {"TC-JEPA": {"value": 52.6, "error": 1.3, "form": ".1f±"}}}

The second has a row per key, and a column per key of the rows; or one column, where a key has a
cell and no row. So the `estimates` and the `measures` of a study's result are tables too. `forms`
are formats as in `tcjepa.figures.values`, and a cell may have a `form` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcjepa.figures.markers import FigureError
from tcjepa.figures.values import ABSENT, ResultFiles, formatted


def table(content: Any, name: str) -> str:
    """Return a stored table as Markdown; raises `FigureError` where `name` is no table."""
    if not isinstance(content, dict):
        raise FigureError(f"{name} is no table but {type(content).__name__}")
    if "columns" in content:
        columns, rows = content["columns"], content.get("rows", [])
        forms = content.get("forms") or [None] * len(columns)
        wrong = [row for row in [forms, *rows] if len(row) != len(columns)]
        if wrong:
            raise FigureError(f"{name}: {wrong[0]} has not as many cells as {columns}")
        cells = [[_cell(c, f) for c, f in zip(row, forms, strict=True)] for row in rows]
        return markdown(columns, cells)
    rows = {key: row if _is_row(row) else {"": row} for key, row in content.items()}
    if not any(_is_row(row) or _is_cell(row) for row in content.values()):
        raise FigureError(f"{name} is no table: it has neither columns nor named cells")
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[key, *(_cell(row.get(c), None) for c in columns)] for key, row in rows.items()]
    return markdown(["", *columns], cells)


def file_list(files: ResultFiles) -> str:
    """Return a table of all result files: what each is, what made it, when and on what."""
    rows = []
    for name in files.names:
        content = files[name]
        command = content["command"]
        made_by = f"`{command if isinstance(command, str) else ' '.join(command)}`"
        if content.get("transcribed"):
            made_by += f" (transcribed {content['transcribed']})"
        about = content.get("about") or ", ".join(b["name"] for b in content.get("benches", []))
        rows.append([f"[{name}]({name})", about, made_by, content["date"][:10], hardware(content)])
    return markdown(["file", "holds", "made by", "date", "hardware"], rows)


def hardware(content: dict[str, Any]) -> str:
    """Return what a result ran on, in a few words."""
    found = content["hardware"]
    if isinstance(found, str):
        return found
    parts = [found.get("gpu"), found.get("cpu")]
    cores, memory = found.get("cores"), found.get("memory_gib")
    parts += [f"{cores} cores" if cores else None, f"{memory} GiB" if memory else None]
    return ", ".join(str(part) for part in parts if part)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, first column to the left as all others."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(columns), "|---" * len(columns) + "|", *map(line, rows)])


def _is_cell(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and not _is_cell(value)


def _cell(value: Any, form: str | None) -> str:
    if _is_cell(value):
        form = value.get("form") or _estimate_form(value)
        value = value if form.endswith(("±", "()")) else value["value"]
    if value is None:
        return ABSENT
    if form is None:
        form = "s" if isinstance(value, str) else ",d" if isinstance(value, int) else ",.4g"
    return formatted(value, form)


def _estimate_form(value: dict[str, Any]) -> str:
    """Return a format with digits that suit an estimate's size, and its interval if it has one."""
    number = value["value"] or 0
    digits = ".1f" if abs(number) >= 1 else ".3f"
    return digits + ("()" if value.get("interval") or value.get("student") else "")


__all__ = ["file_list", "hardware", "markdown", "table"]
