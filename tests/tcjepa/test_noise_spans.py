"""Noise that names things of other images, and captions of a weaker captioner."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import Caption
from pipeline.settings import ConfigError, build
from tcjepa.noise import CaptionNoise, NoiseConfig
from tcjepa.noise_spans import SPAN_EDITS, hallucinate, swap_attributes, swap_nouns
from tcjepa.noise_words import share_of
from tests.tcjepa.shards import caption
from tests.tcjepa.test_noise import Index, donors_of

NOUNS = ("dog", "tree", "star", "Boat", "glass", "mice")
ATTRIBUTES = ("red", "old", "striped", "Small")


def marked(text: str, source: str = "alt") -> Caption:
    """Return a caption whose nouns and attributes are the words of the two lists."""
    found = caption(text, source)
    for word in re.finditer(r"\w+", text):
        for part, words in (("nouns", NOUNS), ("attributes", ATTRIBUTES)):
            if word.group() in words:
                found[part].append([word.start(), word.end()])  # type: ignore[literal-required]
    return found


CAPTIONS = st.lists(st.sampled_from([*NOUNS, *ATTRIBUTES, "a", "on", "the"]), max_size=8).map(
    lambda words: marked(" ".join(words))
)


@given(
    st.lists(CAPTIONS, min_size=1, max_size=3),
    st.lists(CAPTIONS, min_size=1, max_size=3),
    st.floats(0, 1),
    st.integers(0, 2**64),
    st.sampled_from([0, 1]),
)
def test_a_swap_touches_only_its_spans_and_takes_only_new_words(
    image: list[Caption], other: list[Caption], strength: float, some_key: int, which: int
) -> None:
    """What comes in is the first lender's that has anything which no caption of the image says."""
    own = image[0]
    swap, part = ((swap_nouns, "nouns"), (swap_attributes, "attributes"))[which]
    before = own["text"].split()
    after = swap(own, image, other, strength, some_key).split()
    assert after == swap(own, image, other, strength, some_key).split()
    words = (NOUNS, ATTRIBUTES)[which]
    said = {word.casefold() for one in image for word in one["text"].split()}
    strange: set[str] = set()
    for lender in other:
        strange = (
            strange or {word.casefold() for word in lender["text"].split() if word in words} - said
        )
    assert len(after) == len(before)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all(a in words and b.casefold() in strange for a, b in changed)
    touched = share_of(len(own[part]), strength)  # type: ignore[literal-required]
    assert len(changed) == (touched if strange else 0)


def test_a_swapped_word_keeps_its_capital() -> None:
    own, other = marked("Boat on the tree"), marked("a dog")
    assert swap_nouns(own, [own], [other], 1.0, 0) == "Dog on the dog"


@pytest.mark.parametrize("kind", ["swap_nouns", "hallucinate"])
def test_a_lender_that_names_nothing_else_leaves_it_to_its_images_next_caption(
    tmp_path: Path, kind: str
) -> None:
    """Nor may captions of another captioner lend: they may not be those that a run reads."""
    index = Index([3] * 2, tmp_path)
    noise = CaptionNoise(NoiseConfig(kind=kind, rate=1.0, strength=1.0), index)  # type: ignore[arg-type]
    own = [marked("a dog", "vlm:short"), marked("the tree", "vlm:long"), marked("x", "blip:a")]
    others = [marked("dog", "vlm:short"), marked("a glass", "blip:b"), marked("star", "vlm:long")]
    text = noise.text(0, index.uid(0), 0, own, lambda _: others)
    assert text == {"swap_nouns": "a star", "hallucinate": "a dog. There is also a star."}[kind]


@pytest.mark.parametrize(
    ("own", "other", "text"),
    [
        ("a dog", "the old red tree", "a dog. There is also an old red tree."),
        ("a dog.", "two Boat", "a dog. There is also a boat."),
        ("a dog!", "striped glass", "a dog! There is also a striped glass."),
        ("a tree", "red dog on a tree", "a tree. There is also a red dog."),
        ("a Dog", "old dog", "a Dog"),  # nothing that is not in the image
        ("a dog", "on the", "a dog"),
        ("two dogs", "red dog", "two dogs"),  # nor its plural
    ],
)
def test_a_hallucination_is_a_sentence_about_another_thing(own: str, other: str, text: str) -> None:
    one = caption(own)
    assert hallucinate(one, [one], [marked(other)], 0.0, 7) == text


def test_a_hallucination_names_nothing_that_any_caption_of_the_image_names() -> None:
    one = caption("a dog")
    image = [one, caption("the tree stands")]
    for some_key in range(20):
        text = hallucinate(one, image, [marked("tree and star")], 0.5, some_key)
        assert text == "a dog. There is also a star."


@pytest.mark.parametrize("kind", sorted(SPAN_EDITS))
def test_the_same_captions_are_noisy_as_with_a_derangement(tmp_path: Path, kind: str) -> None:
    index = Index([1] * 400, tmp_path)
    noise = CaptionNoise(NoiseConfig(kind=kind, rate=0.4, strength=1.0), index)  # type: ignore[arg-type]
    swaps = donors_of([1] * 400, 0.4, 0) >= 0

    def own(row: int) -> list[Caption]:
        text = f"red thing{row}"
        end = len(text)
        return [{**caption(text), "nouns": [[4, end]], "attributes": [[0, 3]]}]

    for row in range(400):
        text = noise.text(row, index.uid(row), 0, own(row), own)
        assert noise.is_noisy(row, index.uid(row), 0) == swaps[row]
        if kind != "swap_attributes":  # every image's attribute is red, so none is another
            assert (text != own(row)[0]["text"]) == swaps[row]
        if kind == "swap_nouns" and swaps[row]:
            assert text == f"red thing{noise.donor(row, 0)}"


def test_weaker_takes_the_images_own_caption_of_the_weaker_source(tmp_path: Path) -> None:
    index = Index([3] * 50, tmp_path)
    config = NoiseConfig(kind="weaker", rate=0.5, weaker_sources=["blip:*"])
    noise = CaptionNoise(config, index)
    own = [caption("strong", "vlm:short"), caption("weak", "blip:short"), caption("alt", "alt")]
    for row in range(50):
        noisy = noise.is_noisy(row, index.uid(row), 0)
        assert noise.text(row, index.uid(row), 0, own, lambda _: []) == (
            "weak" if noisy else "strong"
        )
    assert 0 < sum(noise.is_noisy(row, index.uid(row), 0) for row in range(50)) < 50
    assert all(
        noise.text(row, index.uid(row), 0, own[:1], lambda _: []) == "strong" for row in range(50)
    )


def test_as_many_weaker_captions_as_there_were_stronger_ones(tmp_path: Path) -> None:
    """Captioners take turns in a list, so the numbers of one are all even, or all odd."""
    config = NoiseConfig(kind="weaker", rate=1.0, weaker_sources=["weak:*"])
    noise = CaptionNoise(config, Index([8] * 9, tmp_path))
    own = [caption(f"{kind} {n}", f"{kind}:{n}") for n in range(4) for kind in ("strong", "weak")]
    orders = set()
    for row in range(9):
        uid = noise._index.uid(row)  # type: ignore[attr-defined]
        told = [noise.text(row, uid, number, own, lambda _: []) for number in range(8)]
        assert sorted(told[::2]) == [f"weak {n}" for n in range(4)]
        assert told[1::2] == [f"weak {n}" for n in range(4)]  # a weak one is what it is
        orders.add(tuple(told[::2]))
    assert len(orders) > 1


def test_weaker_needs_to_know_what_is_weaker() -> None:
    with pytest.raises(ConfigError, match="weaker_sources"):
        build(NoiseConfig, {"kind": "weaker", "rate": 0.5})
    with pytest.raises(ConfigError, match="no other kind"):
        build(NoiseConfig, {"kind": "typos", "weaker_sources": ["alt"]})
