"""References: which value, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcjepa.figures.markers import FigureError
from tcjepa.figures.tables import table
from tcjepa.figures.values import ResultFiles, formatted, referred


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (0.526, ".1f", "0.5"),
        (0.526, ".0%", "53%"),
        (0.526, ".1p", "52.6"),
        (1310.9, ",.0f", "1,311"),
        (203180, ",d", "203,180"),
        (-0.25, "+.2f", "−0.25"),
        (-0.002, "z.2f", "0.00"),
        ("simplejpeg", "s", "simplejpeg"),
        (None, ".1f", "—"),
        (394, "min", "6 min 34 s"),
        (59.6, "min", "1 min 0 s"),
        (40.2, "min", "40 s"),
        ({"value": 52.6, "error": 1.32}, ".1f±", "52.6 ± 1.3"),
        ({"value": 52.6, "error": None}, ".1f±", "52.6"),
        ({"value": 52.6, "half_width": 1.32}, ".1f±", "52.6 ± 1.3"),
        ({"median": 1.268, "low": 1.259, "high": 1.28}, ".2f()", "1.27 (1.26–1.28)"),
        ({"ratio": 0.9, "ratio_range": [0.8, 1]}, ".1f()", "0.9 (0.8–1.0)"),
        ({"value": 0.1, "interval": [-0.2, 0.4]}, ".1f()", "0.1 (−0.2 to 0.4)"),
        ({"value": 0.1, "interval": None, "student": [0, 1]}, ".1f()", "0.1 (0.0–1.0)"),
        ([0.5, 1], ".2f/", "0.50 / 1.00"),
    ],
)
def test_formats(value: Any, form: str, words: str) -> None:
    assert formatted(value, form) == words


@pytest.mark.parametrize(
    ("value", "form"),
    [(True, ".1f"), ("x", ".1f"), ("x", ".1f±"), ({"error": 1}, ".1f±"), (3, ".1f()")],
)
def test_a_format_that_does_not_fit_is_refused(value: Any, form: str) -> None:
    with pytest.raises(FigureError, match="cannot be written as"):
        formatted(value, form)


def test_paths_go_through_names_arms_numbers_and_names_with_slashes(tmp_path: Path) -> None:
    content = {
        "command": "c",
        "date": "2026-01-01",
        "hardware": "h",
        "trials": [{"arm": "rate 0.4, a", "values": {"kNN": 5}}, {"name": "b − c", "speed": 2}],
        "found": {"ours / theirs, 2 workers": 2.6},
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    files = ResultFiles(tmp_path)
    assert referred("x.json#trials/rate 0.4, a/values/kNN d", files) == "5"
    assert referred("x.json#trials/1/speed d", files) == "2"
    assert referred("x.json#found/ours / theirs, 2 workers .1f", files) == "2.6"
    over = "f#trials/rate 0.4, a/values/kNN over f#trials/b - c/speed .1f"
    assert referred(over, files, {"f": "x.json"}) == "2.5"
    assert referred(over.replace("over", "minus"), files, {"f": "x.json"}) == "3.0"
    assert referred("x.json#found/ours /\ntheirs, 2 workers\n.1f", files) == "2.6"


def test_a_name_that_several_items_have_is_refused(tmp_path: Path) -> None:
    trials = [{"arm": "a", "seed": seed, "kNN": seed} for seed in (0, 1)]
    content = {"command": "c", "date": "2026-01-01", "hardware": "h", "trials": trials}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(FigureError, match="2 items are named 'a'; say which by its number"):
        referred("x.json#trials/a/kNN d", ResultFiles(tmp_path))
    assert referred("x.json#trials/1/kNN d", ResultFiles(tmp_path)) == "1"


def test_tables_of_both_shapes() -> None:
    listed = {"columns": ["a", "b"], "rows": [["x", 0.1234], ["y", None], ["z", 1234]]}
    assert table(listed, "t").splitlines()[2:] == ["| x | 0.1234 |", "| y | — |", "| z | 1,234 |"]
    cell = {"value": 52.6, "error": 1.3, "form": ".1f±"}
    named = {"colour": {"trained": cell}, "gain": {"random": {"value": 0.5, "form": ".2f"}}}
    assert table(named, "t").splitlines() == [
        "|  | trained | random |",
        "|---|---|---|",
        "| colour | 52.6 ± 1.3 | — |",
        "| gain | — | 0.50 |",
    ]
    with pytest.raises(FigureError, match="has not as many cells"):
        table({"columns": ["a", "b"], "rows": [["x"]]}, "t")
