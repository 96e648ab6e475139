"""Pages are what the result files give, and a page that is not is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.figures.build import build
from tests.tcjepa.figures.conftest import PAGE, RESULT

Repository = Callable[..., Path]


def messages(root: Path, write: bool = False) -> list[str]:
    errors, stale = build(root, write)
    return [str(problem) for problem in errors + stale]


def test_a_page_is_built_and_then_holds_what_the_files_give(repository: Repository) -> None:
    root = repository()
    errors, stale = build(root, write=True)
    assert (errors, len(stale)) == ([], 2)
    text = (root / "docs/page.md").read_text()
    assert "are <!-- n: run.json#speed/rows/ours/ratio .1f -->3.9<!-- /n --> times as fast" in text
    assert "| what | share |\n|---|---|\n| a \\| b | 52.6% |\n<!-- /table -->" in text
    assert messages(root) == []
    assert build(root, write=True) == ([], [])
    assert (root / "docs/page.md").read_text() == text


@pytest.mark.parametrize(
    ("old", "new", "line", "shown"),
    [
        ("3.9<", "3.8<", 3, "holds '3.8', the result file gives '3.9'"),
        ("52.6%", "53.6%", 5, "-| a \\| b | 53.6% |\n    +| a \\| b | 52.6% |"),
        ("| a \\| b | 52.6% |\n", "", 5, "+| a \\| b | 52.6% |"),
        ("52.6% |\n", "52.6% |\n| mine | 99% |\n", 5, "-| mine | 99% |"),
    ],
)
def test_a_page_changed_by_hand_is_told_and_mended(
    repository: Repository, old: str, new: str, line: int, shown: str
) -> None:
    root = repository()
    build(root, write=True)
    page = root / "docs/page.md"
    built = page.read_text()
    assert built.count(old) == 1
    page.write_text(built.replace(old, new))
    (message,) = messages(root)
    assert message.startswith(f"docs/page.md:{line}: <!-- ")
    assert shown in message
    build(root, write=True)
    assert page.read_text() == built


def test_a_changed_result_file_makes_the_page_stale(repository: Repository) -> None:
    root = repository()
    build(root, write=True)
    (message,) = messages(repository((root / "docs/page.md").read_text(), run=RESULT | CHANGED))
    assert "holds '3.9', the result file gives '4.1'" in message


CHANGED = {"speed": {"rows": [{"name": "ours", "ratio": 4.1}]}}


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("a <!-- n: no.json#x .1f -->1<!-- /n -->", "there is no result file no.json; there are"),
        ("a <!-- n: run.json#speed/x .1f -->1<!-- /n -->", "no 'x' of 'speed/x'; there is rows"),
        ("a <!-- n: run.json#speed/rows/us .1f -->1<!-- /n -->", "no 'us' of 'speed/rows/us'; th"),
        ("a <!-- n: run.json#seconds/x d -->1<!-- /n -->", "no 'x' of 'seconds/x'; there is 394"),
        ("a <!-- n: run.json#date .1f±-->1<!-- /n -->", "cannot be written as '.1f±'"),
        ("a <!-- n: run.json#table .1f -->1<!-- /n -->", "cannot be written as '.1f'"),
        ("a <!-- n: run.json -->1<!-- /n -->", "is not FILE#PATH FORMAT"),
        ("a <!-- n: seconds .1f -->1<!-- /n -->", "names no value: write FILE#PATH"),
        ("a <!-- n: run.json#date minus run.json#zero d -->1<!-- /n -->", "takes two numbers"),
        ("a <!-- n: run.json#seconds over run.json#zero d -->1<!-- /n -->", "divides by 0"),
        ("a <!-- n: bare.json#x d -->1<!-- /n -->", "does not say its command, hardware"),
        ("a <!-- n: broken.json#x d -->1<!-- /n -->", "is no JSON"),
        ("a <!-- n: ../page.md#x d -->1<!-- /n -->", "there is no result file ../page.md"),
        ("a <!-- n: run.json#seconds d -->394", "is not closed by <!-- /n --> on its line"),
        ("a <!-- n: run.json#seconds d -->3\n94<!-- /n -->", "not closed by <!-- /n --> on its"),
        ("a 394<!-- /n -->", "<!-- /n --> closes a marker that is not open"),
        ("<!-- n: run.json#seconds d -->394<!-- /n -->", "begins a line"),
        ("- <!-- n: run.json#seconds d -->394<!-- /n -->", "begins a line"),
        ("<!-- table: run.json table -->\n", "is not closed by <!-- /table --> before the next"),
        (
            "<!-- table: run.json table -->\na <!-- n: run.json#zero d -->0<!-- /n -->\n"
            "<!-- /table -->",
            "is not closed by <!-- /table --> before the next",
        ),
        ("<!-- tabel: run.json table -->\n<!-- /tabel -->", "<!-- /tabel --> closes a marker that"),
        ("<!-- table: run.json table --><!-- /table -->", "shares a line with other text"),
        ("a <!-- table: run.json table -->\n<!-- /table -->", "shares a line with other text"),
        ("<!-- table: run.json -->\n<!-- /table -->", "takes a file and the path of a table"),
        ("<!-- table: run.json seconds -->\n<!-- /table -->", "is no table but int"),
        ("<!-- table: run.json speed -->\n<!-- /table -->", "is no table: it has neither"),
        ("<!-- fill: run.json\n{r#zero d}\n-->\n<!-- /fill -->", "fill takes a=FILE"),
        ("<!-- fill: r=run.json -->\n<!-- /fill -->", "fill takes a=FILE"),
        ("<!-- each: run.json -->\n<!-- /each -->", "each takes a file, the path of a list"),
        ("<!-- each: run.json table\n{x d}\n-->\n<!-- /each -->", "is no list with items"),
        (
            "<!-- each: run.json speed/rows\n{name s} {x d} {y d}\n-->\n<!-- /each -->",
            "no item of speed/rows has x d, y d",
        ),
        ("<!-- files: all -->\n<!-- /files -->", "takes no argument"),
    ],
)
def test_a_marker_that_cannot_be_followed_is_told_by_line(
    repository: Repository, page: str, told: str
) -> None:
    text = f"first line\n\n{page}\n"
    root = repository(text, bare={"date": "2026-01-02", "x": 1}, broken="{")
    found = [message for message in messages(root, write=True) if told in message]
    assert found, messages(root)
    assert found[0].startswith(("docs/page.md:3: ", "docs/page.md:4: "))
    assert (root / "docs/page.md").read_text() == text, "a page with such a marker was rewritten"


def test_examples_in_code_are_no_markers(repository: Repository) -> None:
    page = (
        "```\n<!-- n: no.json#x d -->1<!-- /n -->\n```\n\n"
        "a `<!-- table: no.json x -->` and ``<!-- /table -->``\n\n<!-- an ordinary comment -->\n"
    )
    assert messages(repository(page)) == []


@pytest.mark.parametrize(
    "line",
    ["It is 3.5 times faster.", "A share of 41% fell.", "| a | 0.12 |", "52 ± 1", "30 images/s"],
)
def test_results_without_a_marker_are_told_on_pages_of_results(
    repository: Repository, line: str
) -> None:
    page = f"# Title\n\n{line}\n"
    assert messages(repository(page)) == []  # not a page of results
    root = repository()
    build(root, write=True)
    (root / "docs/results.md").write_text(page)
    (message,) = messages(root)
    assert message.startswith("docs/results.md:3: ")
    assert "looks like a result but no marker" in message
    let_be = "3 runs, 1,000 images, version-1.2, 95% interval, Eq. 2, 40% noise, 100 %"
    settings = f"# Title\n\n`{line}`\n\n{let_be}\n"
    (root / "docs/results.md").write_text(settings)
    assert messages(root) == []


def test_templates_are_filled_once_or_for_each_item(repository: Repository) -> None:
    fill = "<!-- fill: r=run.json\nIn {r#seconds min} we are\n{r#speed/rows/ours .1f()}.\n-->\n"
    each = "<!-- each: other.json list\n| a | b |\n|---|---|\n| {name s} | {x/y .1f} |\n-->\n"
    items = [{"name": "one", "x": {"y": 1}}, {"name": "two"}]
    other = {"command": "c", "date": "2026-01-01", "hardware": "h", "list": items}
    root = repository(f"{fill}<!-- /fill -->\n\n{each}<!-- /each -->\n", other=other)
    assert build(root, write=True)[0] == []
    assert (root / "docs/page.md").read_text() == (
        f"{fill}In 6 min 34 s we are\n3.9 (2.5–5.0).\n<!-- /fill -->\n\n"
        f"{each}| a | b |\n|---|---|\n| one | 1.0 |\n| two | — |\n<!-- /each -->\n"
    )


def test_the_list_of_result_files_says_what_made_each(repository: Repository) -> None:
    other = {"command": "c", "date": "2026-01-01", "hardware": "h", "transcribed": "from a page"}
    root = repository("<!-- files: -->\n<!-- /files -->\n", other=other | {"about": "a thing"})
    build(root, write=True)
    text = (root / "docs/page.md").read_text()
    assert "| [other.json](other.json) | a thing | `c` (transcribed from a page) | 2026" in text
    made_by = "speed of x, of y | `python -m x bench` | 2026-01-02 | a CPU, 2 cores, 4 GiB |"
    assert f"| [run.json](run.json) | {made_by}" in text


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_altered_digit_of_a_marked_passage_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cells = st.floats(-1e4, 1e4) | st.integers(-1000, 10**9)
    values = data.draw(st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
    table = {"columns": ["a", "b"], "rows": [list(row) for row in values]}
    root = tmp_path_factory.mktemp("repository")
    _repository(root, PAGE, RESULT | {"table": table})
    assert build(root, write=True)[0] == []
    page = root / "docs/page.md"
    text = page.read_text()
    assert messages(root) == []
    passages = re.finditer(r"(?<=-->)([^<]*\d[^<]*)(?=<!-- /)", text)
    digits = [p.start() + d.start() for p in passages for d in re.finditer(r"\d", p[0])]
    place = data.draw(st.sampled_from(digits))
    other = data.draw(st.sampled_from(sorted(set("0123456789") - {text[place]})))
    page.write_text(text[:place] + other + text[place + 1 :])
    (message,) = messages(root)
    assert "result file gives" in message


def _repository(root: Path, page: str, result: dict[str, object]) -> None:
    import json

    (root / "docs/results").mkdir(parents=True)
    (root / "README.md").write_text("# Read me\n")
    (root / "docs/page.md").write_text(page)
    (root / "docs/results/run.json").write_text(json.dumps(result))
