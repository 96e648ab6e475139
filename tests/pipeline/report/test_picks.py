"""Examples: the same rows however the run is cut, and no more than asked."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.picks import DROPPED, KEPT, Picks, mix


def picked(rows: np.ndarray, cuts: list[int]) -> list[int]:
    picks = Picks(count=10, kept=3)
    edges = [0, *sorted(cut for cut in cuts if cut <= len(rows)), len(rows)]
    for part, (start, end) in enumerate(itertools.pairwise(edges)):
        picks.offer((DROPPED, "blank"), f"{part:05d}", rows[start:end])
    return [pick.row for pick in picks.groups.get((DROPPED, "blank"), [])]


@given(
    st.lists(st.integers(0, 10**9), unique=True, max_size=300),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_the_cut_into_parts_does_not_matter(rows: list[int], cuts: list[int]) -> None:
    own = np.array(rows, dtype=np.int64)
    lowest = own[np.argsort(mix(own, np.full(len(own), -1)))][:10].tolist()
    assert picked(own, cuts) == picked(own, []) == lowest


def test_rows_of_low_numbers_are_not_preferred() -> None:
    rows = picked(np.arange(10_000), [])
    assert len(rows) == 10
    assert 2_000 < np.mean(rows) < 8_000


def test_kept_rows_have_their_own_number_and_none_are_picked_for_zero() -> None:
    picks = Picks(count=0, kept=3)
    picks.offer((DROPPED, "blank"), "00000", np.arange(5))
    picks.offer((KEPT, ""), "00000", np.arange(5))
    assert {group: len(held) for group, held in picks.groups.items()} == {(KEPT, ""): 3}


def test_captions_of_one_row_are_told_apart() -> None:
    picks = Picks(count=10, kept=0)
    picks.offer_captions(("alt", "url"), "00000", np.zeros(4, int), np.arange(4), "download")
    held = picks.groups["alt", "url"]
    assert sorted(pick.caption for pick in held) == [0, 1, 2, 3]
    assert len({pick.key for pick in held}) == 4
