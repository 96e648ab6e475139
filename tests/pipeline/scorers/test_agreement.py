from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scorers.agreement import (
    FEWEST_REFERENCES,
    REFERENCES,
    Agreement,
    EncoderEvidence,
    Evidence,
    Reference,
    ReferenceSample,
    Said,
    WordEvidence,
)
from pipeline.scorers.claims import claims_of
from pipeline.scorers.words import tag_texts

COLOURS = ["red", "blue", "green", "white", "black"]
THINGS = ["dog", "ball", "boat", "house", "tree", "chair"]
STRANGERS = [
    Reference(f"stranger {n}", f"a {COLOURS[n % 5]} {THINGS[n % 6]} by a {other}", source)
    for n in range(60)
    for other in [THINGS[(n * 5 + 1) % 6]]
    for source in ("alt", "model:short")
]
captions = st.lists(
    st.builds(
        lambda a, b, c, s: Said(f"a {a} {b} and a {c}", s),
        st.sampled_from(COLOURS),
        st.sampled_from(THINGS),
        st.sampled_from(THINGS),
        st.sampled_from(["alt", "model:short", "model:detail", "other:a"]),
    ),
    max_size=6,
    unique_by=lambda said: said.text,
)


def claims(texts: list[str]) -> dict[str, frozenset[str]]:
    return {text: claims_of(words) for text, words in zip(texts, tag_texts(texts), strict=True)}


def word_evidence(said: list[Said], references: list[Reference]) -> WordEvidence:
    texts = [one.text for one in said] + [one.text for one in references]
    return WordEvidence(claims(list(dict.fromkeys(texts))), references)


def score(said: list[Said]) -> list[float | None]:
    return Agreement(STRANGERS, word_evidence(said, STRANGERS)).scores("mine", said)


def reference_scores(
    uid: str, said: list[Said], references: list[Reference], known: dict[str, frozenset[str]]
) -> list[float | None]:
    """The definition, caption by caption."""

    def support(text: str, voice: list[Said]) -> float | None:
        made = known[text]
        heard = {claim for one in voice for claim in known[one.text]}
        return len(made & heard) / len(made) if made else None

    found: list[float | None] = []
    for one in said:
        others = [other for other in said if other is not one]
        values = []
        for captioner in {other.captioner for other in others}:
            voice = [other for other in others if other.captioner == captioner]
            same = [r for r in references if r.source == one.source]
            pool = same if len(same) >= FEWEST_REFERENCES else references
            chances = [support(r.text, voice) for r in pool if r.uid != uid]
            heard = [chance for chance in chances if chance is not None]
            chance, own = sum(heard) / len(heard), support(one.text, voice)
            if own is not None:
                kappa = 0.0 if chance == 1 else (own - chance) / (1 - chance)
                values.append((1 + max(kappa, -1.0)) / 2)
        found.append(sum(values) / len(values) if values else None)
    return found


@given(captions)
def test_scores_are_those_of_the_definition(said: list[Said]) -> None:
    references = [*STRANGERS, *(Reference("mine", one.text, one.source) for one in said)]
    known = claims([r.text for r in references])
    found = Agreement(references, word_evidence(said, references)).scores("mine", said)
    expected = reference_scores("mine", said, references, known)
    assert [value is None for value in found] == [value is None for value in expected]
    for value, wanted in zip(found, expected, strict=True):
        if value is not None and wanted is not None:
            assert 0.0 <= value <= 1.0
            assert value == pytest.approx(wanted, abs=1e-4)


def test_one_caption_agrees_with_nobody() -> None:
    assert score([Said("a red dog", "alt")]) == [None]
    assert score([]) == []
    assert score([Said("123", "alt"), Said("a red dog", "model:a")])[0] is None


def test_invented_things_and_traded_attributes_lower_a_caption() -> None:
    context = [
        Said("a red dog runs after a small blue ball", "model:short"),
        Said("the dog is red", "model:detail"),
        Said("a blue ball lies near a dog", "model:detail"),
    ]

    def alone(text: str) -> float:
        value = score([*context, Said(text, "alt")])[-1]
        assert value is not None
        return value

    right = alone("a red dog and a blue ball")
    traded = alone("a blue dog and a red ball")
    invented = alone("a red dog and a blue boat")
    swapped = alone("a white house by a tree")
    assert right > 0.9
    assert right > traded > swapped
    assert right > invented > swapped
    assert swapped < 0.5


def test_many_sentences_of_one_model_do_not_outvote_another_voice() -> None:
    chorus = [Said(f"a blue boat by a {thing}", "model:detail") for thing in THINGS]
    alone = Said("a red dog", "alt")
    few, many = score([alone, *chorus[:2]]), score([alone, *chorus])
    assert few[1] is not None
    assert many[1] is not None
    # The model's captions back each other up, and the alt text's doubt weighs the same in both.
    assert few[1] < 0.75
    assert many[1] < 0.8


def test_a_voice_that_says_nothing_leaves_captions_where_chance_is() -> None:
    said = [Said("a red dog", "alt"), Said("zzz", "model:short")]
    found = score(said)
    assert found[0] == pytest.approx(0.5, abs=0.02)


def test_vectors_agree_as_far_as_their_nearest_does() -> None:
    draw = np.random.RandomState(0)
    references = [Reference(f"u{n}", f"r{n}", "alt") for n in range(40)]
    names = [r.text for r in references] + ["x", "near x", "far"]
    vectors = {name: draw.normal(size=16).astype(np.float32) for name in names}
    vectors["near x"] = vectors["x"] + 0.1
    unit = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    evidence: Evidence = EncoderEvidence(unit, references)
    said = [Said("x", "alt"), Said("near x", "a:1"), Said("far", "b:1")]
    x, near, far = Agreement(references, evidence).scores("mine", said)
    assert x is not None
    assert near is not None
    assert far is not None
    assert x > 0.7
    assert near > 0.7
    assert far < 0.6
    expected = max(float(unit["x"] @ unit["far"]), float(unit["x"] @ unit["near x"]))
    assert evidence.support("x", ["far", "near x"]) == pytest.approx(expected, abs=1e-4)


def test_the_sample_of_references_does_not_depend_on_order() -> None:
    images = [(f"u{n}", [Said(f"caption {n}", "alt"), Said(f"said {n % 400}", "m:a")])
              for n in range(900)]  # fmt: skip

    def sample(order: list[int]) -> list[Reference]:
        found = ReferenceSample()
        for place in order:
            found.add(*images[place])
        return found.references()

    forward, backward = sample(list(range(900))), sample(list(range(899, -1, -1)))
    assert [(r.source, r.text) for r in forward] == [(r.source, r.text) for r in backward]
    assert len(forward) == 2 * REFERENCES
    assert len({(r.source, r.text) for r in forward}) == len(forward)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two small red stars", {"star", "small", "red", "small star", "red star"}),
        ("the star is red", {"star", "red", "red star"}),
        ("a red star, blue ring", {"red", "star", "red star", "blue", "ring", "blue ring"}),
        ("a black and white dog", {"black", "white", "dog", "black dog", "white dog"}),
        ("", set()),
    ],
)
def test_claims_tie_attributes_to_their_things(text: str, expected: set[str]) -> None:
    assert claims([text])[text] == expected
