"""From what a model wrote to captions: refusals, prefaces, thoughts, loops, what is cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioners.sentences import distinct, usable_sentences

DOG = "A red dog runs on the grass."


@pytest.mark.parametrize(
    "answer",
    [
        "I can't help with that.",
        "I can’t see the image.",
        "I cannot describe this picture.",
        "I can not do that.",
        "I'm unable to view images.",
        "I’m not able to identify people.",
        "I am unable to assist.",
        "As an AI language model, I have no eyes.",
        "As an AI, I do not see.",
        "I'm sorry, but I can't help. Please try another image.",
        "Sorry, I cannot describe it.",
        "Unfortunately, I am not able to see the picture.",
        "I apologize, but the image is missing.",
        "Sure! I’m sorry, but I can’t help with that.",
        "Certainly. Unfortunately, I cannot view the image.",
        "Here is a short description of the image: I'm unable to provide one.",
        "Please provide the image you would like me to describe.",
        "There is no image attached.",
        '"I cannot help with that."',
        "1. I can't do this.",
        "**I'm sorry, I can't.**",
    ],
)
def test_refusals_are_found(answer: str) -> None:
    assert usable_sentences(answer, True) == ([], "refused")


@pytest.mark.parametrize(
    "answer",
    [
        "A sign says that I can't park here.",
        "A man who cannot swim sits in a boat.",
        "I can see a dog.",
        "An AI robot stands in a hall.",
        "Sorry faces look at the camera.",
        "A sure-footed goat climbs.",
        "Here is a dog.",
        "Great Danes play.",
        "An assistant helps a customer.",
    ],
)
def test_what_only_sounds_like_a_refusal_is_kept(answer: str) -> None:
    assert usable_sentences(answer, True) == ([answer], None)


@pytest.mark.parametrize(
    ("answer", "sentences"),
    [
        (f"Sure! Here is a short caption for the image: {DOG}", [DOG]),
        (f"Sure, here's a detailed description of the image:\n\n{DOG}", [DOG]),
        (f"Caption: {DOG}", [DOG]),
        (f"# Description:\n- {DOG}\n- It is day.", [DOG, "It is day."]),
        (f"{DOG} I cannot tell where it is. It is day.", [DOG, "It is day."]),
        (f"<think>A dog? I can't be sure.</think>{DOG}", [DOG]),
        (f"  {DOG}\r\n\t It  is\u00a0day. ", [DOG, "It is day."]),
        (f"{DOG} {'wow ' * 40}.", [DOG]),
        (f"{DOG} {'ha' * 100}.", [DOG]),
        ("Il y a un chien. 犬がいる。", ["Il y a un chien.", "犬がいる。"]),
    ],
)
def test_what_does_not_describe_is_left_out(answer: str, sentences: list[str]) -> None:
    assert usable_sentences(answer, True) == (sentences, None)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "empty_output"),
        ("!!! 123 ...", "empty_output"),
        ("Sure!", "empty_output"),
        ("<think>It is a dog, or is it", "empty_output"),
        ("a dog and a dog and " * 30, "degenerate"),
        ("x" * 5000, "degenerate"),
    ],
)
def test_nothing_usable_has_a_reason(answer: str, fault: str) -> None:
    assert usable_sentences(answer, True) == ([], fault)


def test_the_last_sentence_is_dropped_if_it_was_cut_off() -> None:
    assert usable_sentences(f"{DOG} It is", False) == ([DOG], None)
    assert usable_sentences(f"{DOG} It is", True) == ([DOG, "It is"], None)
    assert usable_sentences("A dog on", False) == (["A dog on"], None)
    assert usable_sentences(f"{DOG} It is day.", False) == ([DOG, "It is day."], None)


@given(st.text(alphabet=st.characters()) | st.text("A dog. I can't\n<think>*#:1", max_size=200))
def test_any_text_gives_clean_sentences_or_a_reason(text: str) -> None:
    sentences, fault = usable_sentences(text, True)
    assert bool(sentences) == (fault is None)
    for sentence in sentences:
        assert sentence == " ".join(sentence.split())
        assert any(map(str.isalpha, sentence))
        sentence.encode()


def test_nearly_identical_sentences_are_one_and_k_are_kept() -> None:
    texts = [
        "A red dog runs on the green grass in the park today.",
        "A red dog runs on the green grass in the park, today!",
        "The red dog runs on a green grass in the park today.",
        "A blue dog runs on the green grass in the park tonight.",
        "A cat.",
    ]
    kept = distinct([(text, "p") for text in texts], 10)
    assert [text for text, _ in kept] == [texts[0], *texts[3:]]
    assert distinct([(text, "p") for text in texts], 2) == kept[:2]
