"""Which passages of a page are marked."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.figures.markers import markers, rewritten

PIECES = [
    "word ",
    "\n",
    "\n\n",
    "`",
    "``",
    "```\n",
    "<!-- n: f.json#a .1f -->",
    "<!-- /n -->",
    "<!-- table: f.json t -->",
    "<!-- /table -->",
    "<!-- fill: f=f.json\n{f#a d}\n-->",
    "<!-- /fill -->",
    "<!-- a note -->",
    "<!--",
    "-->",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_passages_are_apart_and_a_page_put_together_again_is_itself(text: str) -> None:
    found, faults = markers(text)
    assert all(a.end < b.start for a, b in pairwise(found))
    assert all(0 < marker.start <= marker.end < len(text) for marker in found)
    assert rewritten(text, found, lambda marker: text[marker.start : marker.end]) == text
    if not faults:
        new = rewritten(text, found, lambda marker: "\nnew\n" if marker.kind != "n" else "new")
        again, faults = markers(new)
        assert [marker.rest for marker in again] == [marker.rest for marker in found]
        assert faults == []


def test_a_backtick_that_closes_nothing_hides_no_marker() -> None:
    page = "a ` tick\n\nis <!-- n: f.json#a d -->1<!-- /n -->\n\nand ` another\n"
    assert [marker.line for marker in markers(page)[0]] == [3]
    assert markers(page.replace("\n\n", "\n"))[0] == [], "in one paragraph it is code"
