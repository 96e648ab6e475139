"""Captions as vectors for `alignment: linear`: hashed words and word pairs, nothing to fit."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers import lexicon

#: Words read per caption; a longer text is cut.
MAX_WORDS: Final = 256
_WORD: Final = re.compile(r"[^\W\d_]+")
_PLURAL: Final = re.compile(r"(?<=[^s])s$")


def text_features(texts: Sequence[str], width: int) -> NDArray[np.float32]:
    """Return (n, width) float32: which words and word pairs each caption has, 1 or -1 by hash.

    The first half of the width holds words, the second half pairs of neighbouring content words
    and pairs one word apart ("red striped circle": red striped, striped circle, red circle), which
    tie attributes to their nouns. Function words are left out, a plural s is dropped. Signed
    hashing (Weinberger et al. 2009, arXiv 0902.2206) keeps collisions unbiased.
    """
    features = np.zeros((len(texts), width), np.float32)
    half = width // 2
    for row, text in zip(features, texts, strict=True):
        words = content_words(text)
        for word in set(words):
            place, sign = _bucket(word, half)
            row[place] += sign
        pairs = {f"{a} {b}" for step in (1, 2) for a, b in zip(words, words[step:], strict=False)}
        # Sorted: float sums must not depend on the order in which Python walks a set.
        for pair in sorted(pairs):
            place, sign = _bucket(pair, width - half)
            row[half + place] += sign
    return features


def content_words(text: str) -> list[str]:
    """Return the words of a text in order, lower case, without function words and plural s."""
    # 16 characters a word: a bound for the search that no real caption reaches.
    found = _WORD.findall(text[: 16 * MAX_WORDS].lower())[:MAX_WORDS]
    return [_PLURAL.sub("", word) for word in found if word not in lexicon.FUNCTION_WORDS]


@functools.lru_cache(maxsize=200_000)
def _bucket(key: str, width: int) -> tuple[int, float]:
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return (digest >> 1) % width, 1.0 if digest & 1 else -1.0
