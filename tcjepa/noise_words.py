"""Edits of a caption's words, for noise: each a pure function of (words, strength, key)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final

import numpy as np

from tcjepa import keyed

Edit = Callable[[list[str], float, int], list[str]]

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def share_of(count: int, strength: float | Fraction) -> int:
    """Return how many of `count` words a share is, rounded up.

    Of the decimal that was written: the binary number nearest to 0.7 would make 8 of 10 words.
    """
    exact = strength if isinstance(strength, Fraction) else Fraction(repr(strength))
    return math.ceil(exact * count)


def drop_words(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Drop each word with chance `strength`; at least one stays."""
    draws = keyed.uniform(edit_key, len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= strength]
    return kept or words[int(np.argmax(draws)) :][:1] if words else []


def shuffle_words(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Permute a share `strength` of the words among their own places."""
    order = keyed.permutation(edit_key, len(words))
    places = sorted(int(place) for place in order[: share_of(len(words), strength)])
    permuted = keyed.permutation(keyed.key("places", edit_key), len(places))
    shuffled = list(words)
    for place, source in zip(places, permuted, strict=True):
        shuffled[place] = words[places[int(source)]]
    return shuffled


def truncate(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Cut a share `strength` of the words off the end; at least one stays."""
    del edit_key
    return words[: max(1, share_of(len(words), 1 - Fraction(repr(strength))))]


def typos(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Give each word, with chance `strength`, one typing error: two letters swapped or one wrong.

    Words of one letter keep their letter count: it is replaced.
    """
    draws = keyed.uniform(edit_key, 4 * len(words)).reshape(-1, 4)
    return [
        _mistype(word, float(kind), float(place), float(letter)) if hit < strength else word
        for word, (hit, kind, place, letter) in zip(words, draws, strict=True)
    ]


def _mistype(word: str, kind: float, place: float, letter: float) -> str:
    swaps = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if kind < 0.5 and swaps:
        i = swaps[int(place * len(swaps))]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = int(place * len(word))
    wrong = [other for other in _LETTERS if other != word[i].lower()]
    return word[:i] + wrong[int(letter * len(wrong))] + word[i + 1 :]


#: Edits of a caption's whitespace-separated words, by `NoiseConfig.kind`.
EDITS: Final[dict[str, Edit]] = {
    "drop_words": drop_words,
    "shuffle_words": shuffle_words,
    "truncate": truncate,
    "typos": typos,
}
