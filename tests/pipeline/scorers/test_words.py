from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scorers.words import MAX_CHARACTERS, spans

CASES = [
    (
        "a small red striped circle left of a large blue star on a meadow",
        ["circle", "star", "meadow"],
        ["small", "red", "striped", "large", "blue"],
    ),
    (
        "Two black and white dogs run on green grass",
        ["dogs", "grass"],
        ["black", "white", "green"],
    ),
    ("An orange on a wooden table, next to an orange ball.", ["orange", "table", "ball"], None),
    ("A man in shorts throws a ball to his waiting dog", ["man", "shorts", "ball", "dog"], None),
    ("A boy wearing a T-shirt stands near a building .", ["boy", "T-shirt", "building"], []),
    ("The star is orange and the arrow is speckled .", ["star", "arrow"], ["orange", "speckled"]),
    ("a black-and-white dog in a bath-tub", ["dog", "bath-tub"], ["black-and-white"]),
    ("red- dog- -cat--bird", ["dog", "cat", "bird"], ["red"]),
    ("", [], []),
    ("IMG_1234.jpg 12/03", None, []),
]


@pytest.mark.parametrize(("text", "nouns", "attributes"), CASES)
def test_spans_name_things_and_attributes(
    text: str, nouns: list[str] | None, attributes: list[str] | None
) -> None:
    found = [[text[a:b] for a, b in part] for part in spans(text)]
    if nouns is not None:
        assert found[0] == nouns
    if attributes is not None:
        assert found[1] == attributes


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    "a",
                    "red",
                    "-",
                    "dog",
                    "T",
                    " ",
                    ",",
                    "running",
                    "\n",
                    "stars",
                    "é",
                    "'s",
                    "😀",
                    ".",
                ]
            ),
            max_size=30,
        ).map(" ".join),
        st.lists(st.sampled_from(["red", "-", "dog", "T", "x", "'s", "."]), max_size=30).map(
            "".join
        ),
    )
)
def test_spans_are_sorted_disjoint_and_tight(text: str) -> None:
    nouns, attributes = spans(text)
    for part in (nouns, attributes):
        for start, end in part:
            assert 0 <= start < end <= len(text)
            assert text[start:end] == text[start:end].strip()
    joined = sorted(nouns + attributes)
    assert all(a[1] <= b[0] for a, b in pairwise(joined))
    assert nouns == sorted(nouns)
    assert attributes == sorted(attributes)


def test_long_texts_are_read_up_to_the_bound() -> None:
    text = "a red dog on a big hill " * 5000
    nouns, _ = spans(text)
    assert nouns
    assert nouns[-1][1] <= MAX_CHARACTERS
    assert spans("(" * 100_000) == ([], [])
