"""Tables and plots of studies, from a made-up result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tcjepa.ablate import schema
from tcjepa.figures.build import build
from tests.tcjepa.ablate.results import made_up

Repository = Callable[..., Path]

ARMS = """<!-- study: noise.json arms
measures: *colour
arms: I-JEPA | swap*
-->
<!-- /study -->
"""
PLOT = "<!-- plot: noise.json curves noise.{} -->\n<!-- /plot -->\n"


@pytest.fixture
def study(repository: Repository, tmp_path: Path) -> Repository:
    schema.write(made_up(), tmp_path)
    text = (tmp_path / "result.json").read_text()

    def write(page: str, old: str = "", new: str = "") -> Path:
        assert old in text
        return repository(page, noise=text.replace(old, new) if old else text)

    return write


def messages(root: Path) -> list[str]:
    errors, stale = build(root, write=False)
    return [str(problem) for problem in errors + stale]


def test_a_table_is_narrowed_to_the_arms_and_measures_named(study: Repository) -> None:
    root = study(ARMS)
    assert build(root, write=True)[0] == []
    assert (root / "docs/page.md").read_text().splitlines()[4:] == [
        "Accuracy and IoU in percent of held-out images or pixels.",
        "",
        "| arm | seeds | linear colour [%] |",
        "|---|---|---|",
        "| I-JEPA | 2 | 40.5 [39.7, 41.3] ±3.2 |",
        "| swap, rate 0.4 | 2 | 55.5 [54.7, 56.3] ±3.2 |",
        "| swap, rate 1 | 2 | 41.5 [40.7, 42.3] ±3.2 |",
        "<!-- /study -->",
    ]


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("contrasts", "I-JEPA | mIoU | +14.0 |"),
        ("slopes", "| swap | 2 | −19.0 [−21.0, −17.0] ±8.0 |"),
        ("training", "| I-JEPA | 0.5 |"),
        ("runs", "| swap, rate 1 | 1 | — | 42.0 |"),
        ("missing", "| swap, rate 1 | 2 | begun |"),
        ("overrides", "| I-JEPA | model.text=null |"),
        ("won back 40% swapped", "| swap, rate 0.4 | 70% [60, 80] t: [30, 110] | undefined |"),
    ],
)
def test_every_table_of_a_report_can_be_had(study: Repository, table: str, row: str) -> None:
    root = study(f"<!-- study: noise.json {table} -->\n<!-- /study -->\n")
    assert build(root, write=True)[0] == []
    assert row in (root / "docs/page.md").read_text()


@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_plot_is_drawn_again_only_if_its_numbers_changed(study: Repository, form: str) -> None:
    page = PLOT.format(form) + "text\n"
    root = study(page)
    file = root / f"docs/results/noise.{form}"
    assert "is not drawn: `make figures` draws it" in messages(root)[0]
    assert not file.exists(), "a check wrote"
    assert build(root, write=True)[0] == []
    built = (root / "docs/page.md").read_text()
    assert f"(results/noise.{form})\n<!-- /plot -->" in built
    drawn, when = file.read_bytes(), file.stat().st_mtime_ns
    assert drawn.startswith(b"\x89PNG" if form == "png" else b"<?xml")
    assert messages(root) == []
    assert build(root, write=True) == ([], [])
    assert file.stat().st_mtime_ns == when
    study(built, '"linear colour": 56', '"linear colour": 57')
    assert "is drawn from other numbers" in messages(root)[0]
    assert build(root, write=True)[0] == []
    assert file.read_bytes() != drawn
    assert messages(root) == []
    study(built, '"minutes": 12.5', '"minutes": 13')
    assert any("drawn from other" in m for m in messages(root)), "the old numbers are back"


def test_a_plot_does_not_depend_on_when_or_where_its_study_ran(study: Repository) -> None:
    root = study(PLOT.format("png"))
    build(root, write=True)
    built = (root / "docs/page.md").read_text()
    study(built, "2 cores (12 runs)", "an H100")
    assert messages(root) == []


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("<!-- study: noise.json curves -->\n<!-- /study -->", "has no table 'curves'; there is"),
        ("<!-- study: run.json arms -->\n<!-- /study -->", "run.json is no result of a study"),
        ("<!-- study: noise.json arms\narms: x* -->\n<!-- /study -->", "has no arms 'x*'; there"),
        ("<!-- study: noise.json arms\nseeds: 1 -->\n<!-- /study -->", "is not measures or arms"),
        (
            "<!-- study: noise.json contrasts\narms: swap* -->\n<!-- /study -->",
            "the table contrasts of noise.json has no rows",
        ),
        (
            "<!-- study: noise.json slopes\narms: swap* -->\n<!-- /study -->",
            "the table slopes of noise.json has no rows",
        ),
        ("<!-- plot: noise.json lines a.png -->\n<!-- /plot -->", "has no picture 'lines'; the"),
        ("<!-- plot: noise.json curves a.jpg -->\n<!-- /plot -->", "plot takes a file, a pict"),
        ("<!-- plot: noise.json curves ../a.png -->\n<!-- /plot -->", "plot takes a file, a pict"),
        ("<!-- plot: noise.json -->\n<!-- /plot -->", "plot takes a file, a picture"),
    ],
)
def test_what_a_study_does_not_have_is_told(study: Repository, page: str, told: str) -> None:
    (message,) = messages(study(f"{page}\n"))
    assert message.startswith("docs/page.md:1: ")
    assert told in message
