"""README and docs hold what the committed result files give."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tcjepa.figures.build import RESULTS, pages
from tcjepa.figures.markers import markers

ROOT = Path(__file__).parents[1]


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tcjepa.figures", "--check", "--root", str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_marked_passage_holds_what_the_result_files_give() -> None:
    done = check(ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_result_file_is_shown_somewhere() -> None:
    """A search that found no markers would find nothing wrong."""
    marked = {page.name: len(markers(page.read_text())[0]) for page in pages(ROOT)}
    assert marked["README.md"] >= 1
    assert min(marked["results.md"], marked["decisions.md"]) > 5
    texts = "".join(page.read_text() for page in pages(ROOT))
    unused = [p.name for p in (ROOT / RESULTS).glob("*.json") if texts.count(p.name) <= 2]
    assert unused == [], "result files that no page but their list names"


def test_every_picture_is_drawn_by_a_marker() -> None:
    drawn = {
        marker.rest.partition("\n")[0].split()[-1]
        for page in pages(ROOT)
        for marker in markers(page.read_text())[0]
        if marker.kind == "plot"
    }
    pictures = {p.name for p in (ROOT / "docs").rglob("*") if p.suffix in (".png", ".svg", ".jpg")}
    assert pictures == drawn


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's pages and result files, to spoil."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_a_result_file_that_changed_fails_the_check_by_page_and_line(copy: Path) -> None:
    path = copy / RESULTS / "language.json"
    content = json.loads(path.read_text())
    content["tables"]["libraries"]["rows"][0][1] = 0.5
    path.write_text(json.dumps(content))
    done = check(copy)
    assert done.returncode == 1
    assert "docs/decisions.md:" in done.stderr
    assert "<!-- table: language.json tables/libraries -->" in done.stderr
    assert "+| pipeline | 0.500 |" in done.stderr


def test_a_result_file_that_is_gone_fails_the_check(copy: Path) -> None:
    (copy / RESULTS / "demo.json").unlink()
    done = check(copy)
    assert done.returncode == 1
    assert "error: README.md:" in done.stderr
    assert "there is no result file demo.json" in done.stderr
