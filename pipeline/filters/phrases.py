"""Which texts hold which of many phrases, word by word, in Arrow columns.

A phrase is one to `MAX_WORDS` words. Texts and phrases are lower-cased and reduced to letters,
digits and single spaces, so only whole words match: "cat" is in "A cat!" and not in "catalogue".
Time grows with the words of the texts, not with the number of phrases.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.settings import ConfigError

#: Longest phrase that can be asked for [words].
MAX_WORDS: Final = 6


def read_lines(path: str, key: str) -> list[str]:
    """Return the lines of a text file, without comments (from `#` at a line's start) and blanks.

    `key` is the config key that named the file; raises `ConfigError` if it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} cannot be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def phrase_table(phrases: Iterable[str], key: str) -> pa.Array:
    """Return the distinct phrases as they are compared, sorted; raises `ConfigError`.

    An error names `key` and the phrase without a word, or with more than `MAX_WORDS`.
    """
    given = pa.array(list(phrases), pa.string())
    plain = _plain(given)
    for phrase, text in zip(given.to_pylist(), plain.to_pylist(), strict=True):
        if not 1 <= len(text.split()) <= MAX_WORDS:
            raise ConfigError(f"{key}: {phrase!r} has no word, or more than {MAX_WORDS} words")
    distinct = pc.unique(plain)
    return distinct.take(pc.array_sort_indices(distinct))


def find_phrases(
    texts: pa.Array, phrases: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct (text, phrase) pairs that match, as two arrays (m,), sorted.

    `texts` (n,) of string, null for none; `phrases` from `phrase_table`.
    """
    if not len(texts) or not len(phrases):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    split = pc.split_pattern(_plain(texts), " ")
    words = split.flatten()
    owner = np.repeat(np.arange(len(texts)), pc.fill_null(pc.list_value_length(split), 0))
    longest = max(text.count(" ") for text in phrases.to_pylist()) + 1
    found = []
    run, last = words, np.arange(len(words))
    for length in range(1, longest + 1):
        if length > 1:  # join each run with the word after it, where one follows in its text
            inside = np.flatnonzero(last + 1 < len(words))
            inside = inside[owner[last[inside]] == owner[last[inside] + 1]]
            last = last[inside] + 1
            run = pc.binary_join_element_wise(run.take(inside), words.take(last), " ")
        place = pc.index_in(run, value_set=phrases)
        hits = np.flatnonzero(np.asarray(place.is_valid()))
        number = place.take(hits).to_numpy(zero_copy_only=False).astype(np.int64)
        found.append(owner[last[hits]].astype(np.int64) * len(phrases) + number)
    pairs = np.unique(np.concatenate(found))
    return pairs // len(phrases), pairs % len(phrases)


def _plain(texts: pa.Array) -> pa.Array:
    text = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(text, r"[^\pL\pM\pN]+", " "))
