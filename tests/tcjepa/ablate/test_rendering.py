"""Report, page and figures are made from result.json alone, and show what it holds as it is."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tcjepa.ablate import schema, tables
from tcjepa.ablate.drawing import moved_apart, style
from tcjepa.ablate.page import page
from tcjepa.ablate.panels import MOST_LINES, panels
from tcjepa.ablate.plots import pictures
from tcjepa.ablate.rendering import PAGE, REPORT, markdown, render, summary
from tcjepa.ablate.schema import ArmRecord, CurveRecord, Estimate
from tests.tcjepa.ablate.results import made_up


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of a result.json, in another process."""
    folder = tmp_path_factory.mktemp("rendered")
    schema.write(made_up(), folder)
    command = [sys.executable, "-m", "tcjepa.ablate.rendering", str(folder / "result.json")]
    done = subprocess.run(
        [*command, str(folder / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


class Page(HTMLParser):
    """Collects what a browser would load or run, and the text it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_runs_nothing_and_shows_names_as_they_are(rendered: Path) -> None:
    text = (rendered / PAGE).read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "typo", "b", "noise"} & set(page.tags)
    assert page.sources and all(
        s.startswith(("data:image/svg+xml;base64,", "#")) for s in page.sources
    )
    assert "url(" not in text and "@import" not in text
    for name in ("<typo> & | rate 1", "What does <noise> do?", "<b>killed</b>"):
        assert name in page.text
    for part in ("python -m tcjepa ablate noise", "code 0123, data 4567", "2 cores (12 runs)"):
        assert part in page.text
    assert "@media print" in text and 'name="viewport"' in text


def test_the_report_has_every_table_and_figure(rendered: Path) -> None:
    text = (rendered / REPORT).read_text()
    for table in tables.tables(made_up()):
        assert f"## {table.title}" in text
    for block in text.split("\n\n"):  # every row of a table has as many cells
        if block.startswith("| "):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "10 of 11 runs finished" in text
    linked = re.findall(r"\]\((.+?\.png)\)", text)
    assert linked and {path.name for path in rendered.glob("*.png")} == set(linked)
    for name in linked:
        image = np.asarray(Image.open(rendered / name).convert("L"))
        assert image.shape[1] > 500 and image.std() > 5
    assert not re.search(r"<\w", text)


def test_the_same_result_gives_the_same_files(rendered: Path, tmp_path: Path) -> None:
    render(made_up(), tmp_path)
    for path in sorted(rendered.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_wrong_files_are_refused_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    command = [sys.executable, "-m", "tcjepa.ablate.rendering", str(tmp_path / "x.json"), "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2 and "x.json is no result.json" in done.stderr
    assert not (tmp_path / "out").exists()


def test_cells_say_what_is_known() -> None:
    whole = Estimate(value=41.26, interval=(40, 42.5), student=(38, 44.5), seeds=3)
    assert tables.cell(whole, True) == "41.3 [40.0, 42.5] ±3.2"
    bare = Estimate(value=-0.1234, interval=None, student=None, seeds=1)
    assert tables.cell(bare, False) == "−0.123"
    unknown = Estimate(value=None, interval=None, student=None, seeds=3)
    assert tables.cell(unknown, True) == tables.share_cell(unknown) == "undefined"
    half = Estimate(value=0.5, interval=(0.25, 0.75), student=None, seeds=3)
    assert tables.share_cell(half) == "50% [25, 75] t: unbounded"


def test_what_noise_took_is_said_in_its_unit() -> None:
    """Text gain is a difference of losses; the share of it that is won back is in percent."""
    result = made_up()
    lost, won = tables.recovery_table(result, result.recoveries[0]).rows
    assert lost[1].startswith("19.0 [17.0, 21.0]")
    assert lost[3].startswith("0.190 [0.140, 0.240]")
    assert won[3].startswith("72% [52, 92]")
    assert [text.rpartition("]")[2] for text in lost[1:]] == [
        " ±8.0 points lost", " ±8.0 points lost", " ±0.200 lost"
    ]  # fmt: skip


def test_slopes_say_their_unit_seeds_and_missing_arms() -> None:
    gain = Estimate(value=0.2, interval=None, student=None, seeds=3)
    (slope,) = made_up().slopes
    measured = {**slope.measures, "text gain": gain}
    more = slope.model_copy(update={"measures": measured, "points": {"text gain": (2, 3)}})
    table = tables.slopes_table(made_up().model_copy(update={"slopes": (more,)}))
    assert table.head == ("curve", "seeds", "linear colour [points]", "text gain")
    assert table.rows == (
        ("swap", "2–3", "−19.0 [−21.0, −17.0] ±8.0", "+0.200 (2 of 3 arms)"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "said", "unsaid"),
    [
        ({1}, ["With one seed"], ["With 3 seeds"]),
        ({3}, ["With 3 seeds"], ["With one seed"]),
        ({1, 2, 3}, ["With one seed", "With 2–3 seeds"], []),
        ({12}, [], ["With one seed", "With 12 seeds"]),
    ],
)
def test_few_seeds_are_those_that_finished(
    counts: set[int], said: list[str], unsaid: list[str]
) -> None:
    found = {str(n): Estimate(value=1, interval=None, student=None, seeds=n) for n in counts}
    made = made_up().model_copy(update={"seeds": (0, 1, 2), "estimates": {"mIoU": found}})
    text = " ".join(summary(made))
    assert all(part in text for part in said) and not any(part in text for part in unsaid)


def test_the_commands_of_arms_stand_with_the_arms() -> None:
    made = made_up().model_copy(update={"commands": ("run <all>", "run one", "run <other>")})
    text = markdown(made, [])
    assert "## How to run it again\n\n    run <all>\n\n" in text
    assert text.endswith("One arm alone, with seed 0:\n\n    run one\n    run <other>\n")
    shown = Page(page(made, [], [])).text
    assert "run one\nrun <other>" in shown and "run <all>\n" in shown


@pytest.mark.parametrize(
    ("interval", "student", "said"),
    [((1, 2), (0.5, 3), "both"), ((1, 2), (-1, 3), "bootstrap only"), ((-1, 2), None, "neither"),
     ((-1, 2), (1, 1.5), "Student only")],
)  # fmt: skip
def test_verdicts(
    interval: tuple[float, float], student: tuple[float, float] | None, said: str
) -> None:
    assert tables.verdict(Estimate(value=1, interval=interval, student=student, seeds=3)) == said


def test_svg_figures_are_sound_and_hold_their_names_as_text() -> None:
    for picture in pictures(made_up()):
        root = ET.fromstring(picture.content("svg"))
        shown = " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
        assert "linear colour" in shown or "swap" in shown
    curves = pictures(made_up())[0].content("svg").decode()
    assert "&lt;typo&gt; &amp; |" in curves


def test_a_name_with_dollars_is_no_formula() -> None:
    name = "^(a|b)$ or ^c_$"
    text = made_up().model_dump_json().replace("I-JEPA", name).replace("swap", "cost $5_, $6")
    for picture in pictures(schema.StudyResult.model_validate_json(text)):
        assert picture.content("png").startswith(b"\x89PNG")
        assert "$" in "".join(ET.fromstring(picture.content("svg")).itertext())


def test_figures_of_what_cannot_be_a_line_are_rows() -> None:
    made = made_up()
    assert [p.file for p in pictures(made)] == ["curves", "contrasts", "won-back-40-swapped"]
    curve = CurveRecord(name="", points=(("none", "rate 0"), ("all", "swap, rate 1")))
    named = made.model_copy(update={"curves": (curve,), "contrasts": (), "recoveries": ()})
    assert [p.file for p in pictures(named)] == ["arms"]
    assert pictures(named)[0].content("png").startswith(b"\x89PNG")


def test_many_curves_are_small_multiples_with_one_look_per_line() -> None:
    kinds, counts = [f"kind {k}" for k in range(4)], (1, 4, 8)
    arms, curves = [], []
    for count in counts:
        shared = tuple((("k", kind), ("r", 0), ("same", 1), ("a.n_n", count)) for kind in kinds)
        arms.append(ArmRecord(name=f"clean {count}", places=shared))
        for kind in kinds:
            arms.append(
                ArmRecord(
                    name=f"{kind} {count}",
                    places=((("k", kind), ("r", 1), ("same", 1), ("a.n_n", count)),),
                )
            )
            points = ((0, f"clean {count}"), (1, f"{kind} {count}"))
            curves.append(CurveRecord(name=f"{kind}, {count}", points=points))
    many = made_up().model_copy(update={"x": "r", "arms": tuple(arms), "curves": tuple(curves)})
    found = panels(many)
    assert [panel.title for panel in found] == kinds
    for panel in found:
        assert [(line.label, line.style) for line in panel.lines] == [
            ("n n 1", 0), ("n n 4", 1), ("n n 8", 2)
        ]  # fmt: skip
    assert sum(len(panel.lines) for panel in found) == 12
    few = many.model_copy(update={"curves": tuple(curves[:MOST_LINES])})
    assert [len(panel.lines) for panel in panels(few)] == [MOST_LINES]


def test_lines_of_a_panel_differ_in_grey() -> None:
    looks = [style(n) for n in range(MOST_LINES)]
    assert (
        len({look.marker for look in looks})
        == len({str(look.dash) for look in looks})
        == MOST_LINES
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.2)), min_size=1, max_size=8))
def test_labels_keep_their_order_do_not_overlap_and_move_no_further_than_they_must(
    wishes: list[tuple[float, float]],
) -> None:
    wishes.sort()
    wanted, heights = [w for w, _ in wishes], [h for _, h in wishes]
    placed = moved_apart(wanted, heights)
    gaps = [b - a for a, b in itertools.pairwise(placed)]
    needed = [(a + b) / 2 for a, b in itertools.pairwise(heights)]
    assert all(gap >= need - 1e-9 for gap, need in zip(gaps, needed, strict=True))
    wishes_apart = [b - a for a, b in itertools.pairwise(wanted)]
    if all(gap >= need for gap, need in zip(wishes_apart, needed, strict=True)):
        assert placed == pytest.approx(wanted)
    # Least squares: shifting all labels as one block cannot be better.
    assert sum(p - w for p, w in zip(placed, wanted, strict=True)) == pytest.approx(0, abs=1e-6)
