from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scorers.wording import wording_parts, wording_scores
from pipeline.scorers.words import tag_texts


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_every_part_lies_in_the_unit_interval(text: str) -> None:
    parts = wording_parts(next(tag_texts([text])))
    for value in (parts.length, parts.visual, parts.complexity, parts.repetition, parts.score):
        assert 0.0 <= value <= 1.0


def test_descriptions_beat_file_names_stutter_and_slogans() -> None:
    good, short, name, stutter, slogan, empty = wording_scores(
        [
            "A small brown dog runs across a green field with a red ball.",
            "dog",
            "IMG_2041.JPG",
            "dog ball dog ball dog ball dog ball dog ball",
            "buy now and you will never have to wait for it again",
            "",
        ]
    )
    assert good > 0.9
    assert all(other < 0.7 * good for other in (short, name, stutter, slogan))
    assert empty == 0.0


def test_a_score_does_not_depend_on_its_batch() -> None:
    texts = [f"a red dog number {number} on a hill" for number in range(600)]
    assert wording_scores(texts) == [wording_scores([text])[0] for text in texts[:3]] + (
        wording_scores(texts[3:])
    )


@pytest.mark.parametrize("text", ["(" * 100_000, "a red dog " * 10_000, "é" * 100_000])
def test_long_texts_take_bounded_time(text: str) -> None:
    wording_scores(["warm up"])
    start = time.process_time()
    assert 0.0 <= wording_scores([text])[0] <= 1.0
    assert time.process_time() - start < 2.0
