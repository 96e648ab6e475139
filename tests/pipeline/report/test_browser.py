"""The report as a browser sees it: nothing runs, nothing is fetched, nothing sticks out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.report.page import build_report
from pipeline.storage import Directory

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(
    _BROWSER is None, reason=f"no browser: none of {', '.join(_NAMES)} is installed"
)


def dump(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Return the page's document after it has loaded, and what the browser's console said."""
    assert _BROWSER is not None
    done = subprocess.run(
        [
            _BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={profile}", "--allow-file-access-from-files",
            "--disable-dev-shm-usage", "--virtual-time-budget=2000",
            "--window-size=1280,900", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def title(dom: str) -> str:
    found = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert found
    return found[1]


def without_policy(html: str) -> str:
    """Return the page without its second line of defence: escaping alone must hold."""
    bare, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert found == 1
    return bare


@pytest.fixture(scope="module")
def hostile_html(hostile: Path) -> str:
    return build_report(Directory(hostile))


@pytest.mark.parametrize("guarded", [True, False], ids=["as written", "without its policy"])
def test_attacks_do_not_run(hostile_html: str, guarded: bool, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(hostile_html if guarded else without_policy(hostile_html))
    dom, console = dump(page, tmp_path / "profile")
    assert title(dom) == "Curation report · run"
    assert "owned" in dom  # the attacks are there, as text
    assert console == []


def test_the_test_would_see_an_attack_run(hostile_html: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    attack = "<script>document.title='owned';console.error('seen')</script></body>"
    page.write_text(without_policy(hostile_html).replace("</body>", attack))
    dom, console = dump(page, tmp_path / "profile")
    assert title(dom) == "owned"
    assert len(console) == 1
    page.write_text(hostile_html.replace("</body>", attack))
    assert title(dump(page, tmp_path / "profile")[0]) == "Curation report · run"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_and_every_image_shows(
    run: Path, hostile: Path, width: int, tmp_path: Path
) -> None:
    for number, folder in enumerate((run, hostile)):
        html = build_report(Directory(folder)).replace("<details ", "<details open ")
        inner, outer = tmp_path / f"{number}.html", tmp_path / f"{number}-outer.html"
        inner.write_text(without_policy(html))
        # A frame has the width of a phone even where the browser's window cannot.
        outer.write_text(
            f"<title>loading</title><iframe src='{inner.name}' style='width:{width}px;border:0'"
            ' onload="const d = this.contentDocument, e = d.documentElement;'
            " const broken = [...d.images].filter(i => !i.naturalWidth).length;"
            " document.title = [e.clientWidth, e.scrollWidth, d.images.length, broken].join(' ')\">"
            "</iframe>"
        )
        dom, console = dump(outer, tmp_path / "profile")
        client, scroll, images, broken = (int(word) for word in title(dom).split())
        assert client <= width
        assert scroll <= client
        assert images > 5
        assert broken == 0
        assert console == []
