from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc

from pipeline.captioners.annotations import AnnotationsCaptioner, AnnotationsConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.captioners.scene_graph import parse
from pipeline.scorers import words
from pipeline.scorers.words import MAX_CHARACTERS, spans
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.world import scene

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
    ("\ud800 red\u200bdog\x00ball\ufeff", ["dog", "ball"], ["red"]),
    ("ein Café in İstanbul, 👩\u200d👧 red dogs", None, ["red"]),
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
        st.text(st.characters(), max_size=80),  # lone surrogates too
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


def test_generated_captions_have_the_spans_of_their_truth() -> None:
    for index in range(40):
        annotations = scene(ScenesConfig(), "train", index).annotations()
        graph = parse(annotations)
        captioner = AnnotationsCaptioner(AnnotationsConfig())
        (result,) = captioner.caption([CaptionRequest(f"{index}", b"", annotations)])
        names = {word for thing in graph.things for word in thing.category.split()}
        looks = {word for thing in graph.things for word in thing.attributes}
        for text, _ in result.captions:
            nouns, attributes = ([text[a:b].lower() for a, b in part] for part in spans(text))
            words = set(re.findall(r"[a-z]+", text.lower()))
            assert words & names <= set(nouns), text
            assert words & looks <= set(attributes), text


def test_long_texts_are_read_up_to_the_bound() -> None:
    text = "a red dog on a big hill " * 5000
    nouns, _ = spans(text)
    assert nouns
    assert nouns[-1][1] <= MAX_CHARACTERS
    assert spans("(" * 100_000) == ([], [])


def test_a_trained_pipeline_decides_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trained:
        """Stands in for `en_core_web_*`, which no package index has: real Docs, fixed tags."""

        def __init__(self) -> None:
            self.blank = spacy.blank("en")
            self.memory_zone = self.blank.memory_zone

        def pipe(self, texts: list[str]) -> Iterator[Doc]:
            for text in texts:
                yield Doc(self.blank.vocab, text.split(), pos=["PROPN", "VERB", "ADJ", "NOUN"])

    monkeypatch.setattr(words, "language_pipeline", lambda: ("trained", Trained()))
    assert spans("Ann flies quick kites") == ([[0, 3], [16, 21]], [[10, 15]])
