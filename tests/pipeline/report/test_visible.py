"""Hostile text: shown, never obeyed."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.visible import TEXT_LIMIT, visible, without_secrets


@given(st.text(max_size=600))
def test_what_is_shown_cannot_steer_a_terminal_or_the_direction_of_text(text: str) -> None:
    shown = visible(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not any(
        c in shown for c in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    )
    # At worst, every character is spelled out: ⟨U+10FFFF⟩.
    assert len(shown) <= 10 * TEXT_LIMIT + len("… (600 characters)")


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), max_size=TEXT_LIMIT))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert visible(text) == text


def test_hidden_characters_are_spelled_out() -> None:
    assert visible("a\x1b[31mb\u202ec") == "a⟨U+001B⟩[31mb⟨U+202E⟩c"
    assert visible("one\n two\t\tthree ") == "one two three"
    assert visible("x" + "\u0301" * 50) == "x" + "\u0301" * 3
    family = "\U0001f468\u200d\U0001f469"
    assert visible(family) == family


def test_a_cut_text_says_how_long_it_was() -> None:
    assert visible("x" * 10_000, 20) == "x" * 20 + "… (10,000 characters)"
    assert visible("x" * 20, 20) == "x" * 20


def test_user_names_and_passwords_are_left_out() -> None:
    url = "s3://me:secret@host/key and https://host/a@b"
    assert without_secrets(url) == "s3://…@host/key and https://host/a@b"
