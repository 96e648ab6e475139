"""The report of real runs: complete, self-contained, true to the manifest, and deaf to attacks."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report.examples import read_examples
from pipeline.report.fates import Fates
from pipeline.report.page import build_report, write_report
from pipeline.report.picks import Picks
from pipeline.report.state import read_state
from pipeline.report.visible import visible
from pipeline.settings import ConfigError
from pipeline.status import describe_run
from pipeline.storage import Directory
from tests.pipeline.report.conftest import ATTACKS

STEER = "\x1b]0;owned\x07 \u202e back"
_VOID = {"meta", "img", "br", "rect", "line", "path", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text of every section, and whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {"": ""}
        self.open: list[str] = []
        self.errors: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.text[self._section] = ""
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text[self._section] += data

    def words(self, section: str) -> str:
        return " ".join(self.text[section].split())


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return build_report(Directory(run))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_whole(page: Page) -> None:
    assert page.errors == []
    assert page.open == []
    assert set(page.text) == {
        "", "funnel", "time", "scores", "measures", "mix", "kept", "dropped", "captions",
        "failed", "made",
    }  # fmt: skip
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_funnel_is_the_manifests(run: Path, page: Page) -> None:
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    funnel = manifest["funnel"]
    words = page.words("funnel")
    failed = sum(sum(reasons.values()) for reasons in funnel["failed"].values())
    assert (
        f"{funnel['rows']:,} rows in = {funnel['fetched']:,} fetched + {failed:,} failed" in words
    )
    assert "equal to shards/manifest.json" in words
    assert "does not hold" not in words
    for reasons in [*funnel["failed"].values(), funnel["dropped"], funnel["captions"]["dropped"]]:
        for reason, count in reasons.items():
            assert re.search(rf"\b{reason}\D.*?\b{count:,}\b", words), reason
    assert f"kept {funnel['kept']:,}" in words
    for tool, version in manifest["tools"].items():
        assert tool in page.words("made")
        assert version in page.words("made")


def test_nothing_is_fetched_from_elsewhere(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "action", "data", "srcset", "poster", "xlink:href"}:
                assert (value or "").startswith(("data:image/jpeg;base64,", "#")), (tag, value)
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_readers_who_cannot_see_are_told(page: Page) -> None:
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
        if tag == "svg":
            assert "aria-label" in attributes or attributes["aria-hidden"] == "true"
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_scores_measures_and_examples_are_drawn(page: Page) -> None:
    charts = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    for name in (
        "wording",
        "language",
        "alignment",
        "quality",
        "shorter side",
        "words",
        "contrast",
    ):
        assert any(f"Histogram of {name}" in label for label in charts), name
    assert "filter.image.min_side" in page.words("measures")
    assert "annotations:" in page.words("mix")
    assert sum(tag == "img" for tag, _ in page.tags) > 20
    assert "127.0.0.1:" in page.words("failed")


def test_the_file_is_small(html: str) -> None:
    assert len(html.encode()) < 3_000_000


def test_the_same_run_gives_the_same_page(run: Path, html: str) -> None:
    assert build_report(Directory(run)) == html


def test_attacks_stay_text(hostile: Path) -> None:
    html = build_report(Directory(hostile))
    page = Page(html)
    assert page.errors == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "i"}
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert sum(tag == "body" for tag, _ in page.tags) == 1
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(a.get("href", "#").startswith("#") for tag, a in page.tags if tag == "a")
    text = "".join(page.text.values())
    # Sources take control characters out of captions: the rest is tested below.
    assert all(visible(attack) in text for attack in ATTACKS[:10])
    assert "missing<i>.png" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    long = next(attack for attack in ATTACKS if len(attack) > 5000)
    assert long not in html
    assert f"({len(long.strip()):,} characters)" in text


def test_control_characters_in_tables_are_spelled_out(copied: Callable[[], Path]) -> None:
    run = copied()
    for path in (run / "tables" / "download").glob("*.parquet"):
        table = pq.read_table(path)
        evil = [[STEER] for _ in range(len(table))]
        for name, values in (("captions", evil), ("url", [f"http://h/{STEER}"] * len(table))):
            kind = table.schema.field(name).type
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(values, kind))
        pq.write_table(table, path)
    html, status = build_report(Directory(run)), describe_run(str(run))
    for text in (html, status):
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
        assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in text
        assert "http://h/⟨U+001B⟩" in text


def test_what_was_taken_down_is_counted_and_not_shown(copied: Callable[[], Path]) -> None:
    run = copied()
    selected = [pq.read_table(p) for p in sorted((run / "tables" / "select").glob("0*.parquet"))]
    rows = [row for table in selected for row in table.to_pylist()]
    copy = next(row for row in rows if row["reason"] == "near_duplicate")
    for table, path in zip(
        selected, sorted((run / "tables" / "select").glob("0*.parquet")), strict=True
    ):
        reasons = [
            "blocked_uid" if row["uid"] == copy["representative"] else row["reason"]
            for row in table.to_pylist()
        ]
        place = table.schema.get_field_index("reason")
        pq.write_table(table.set_column(place, "reason", pa.array(reasons, pa.string())), path)
    state = read_state(Directory(run))
    fates = Fates(Picks(count=1000, kept=1000))
    for part in state.tables():
        fates.add(part)
    assert fates.taken_down == {copy["representative"]}
    examples = read_examples(state.tables(), fates, state.config)
    hidden = [example for group in examples.values() for example in group if not example.url]
    assert copy["row"] in {example.row for example in hidden}
    assert all(
        example.uid is None and example.image is None and not example.captions for example in hidden
    )
    shown = [e for group in examples.values() for e in group if e.url]
    assert not {copy["representative"]} & {uid for e in shown for uid in (e.uid, e.copy_of)}


def test_a_run_that_was_killed_early_is_described_as_far_as_it_came(
    copied: Callable[[], Path],
) -> None:
    run = copied()
    (run / "shards" / "manifest.json").unlink()
    (run / "tables" / "choose" / "00001.parquet").unlink()
    (run / "tables" / "download" / "00002.parquet").write_bytes(b"PAR1 cut short")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 1')
    page = Page(build_report(Directory(run)))
    assert page.errors == []
    assert "not finished" in page.text[""]
    words = page.words("funnel")
    assert "waiting for choose" in words
    assert "waiting for download" in words
    assert "does not hold" not in words
    assert "manifest" not in words


def test_a_part_that_failed_is_counted_and_its_error_shown(copied: Callable[[], Path]) -> None:
    run = copied()
    (run / "shards" / "manifest.json").unlink()
    event = {"time": 1e9, "stage": "filter", "part": "00003", "seconds": 0, "error": "<b>disk</b>"}
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({**event, "bytes": 0, "counts": {}}) + "\n")
    page = Page(build_report(Directory(run)))
    assert "part_failed" in page.words("funnel")
    assert "<b>disk</b>" in page.words("time")


def test_images_that_are_gone_leave_a_gap(copied: Callable[[], Path]) -> None:
    run = copied()
    for tar in (run / "raw").glob("*.tar"):
        tar.unlink()
    page = Page(build_report(Directory(run)))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "no image" in page.words("kept")


def test_write_report_puts_it_into_the_run(copied: Callable[[], Path]) -> None:
    run = copied()
    write_report(Directory(run))
    assert Page((run / "report.html").read_text()).errors == []


def test_no_run_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        build_report(Directory(tmp_path))
