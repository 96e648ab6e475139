"""Shares of nouns, verbs and names among a caption's words.

From `scorers.words`: a trained spaCy pipeline where one is installed, otherwise the lexicon tagger.
Neither parts names from other nouns there, so a name is a noun that is capitalised inside a
sentence; captions that capitalise all their words have none by this rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads spaCy
    from pipeline.scorers.words import Word


@dataclass(frozen=True)
class WordShares:
    """Shares of a caption's words, in [0, 1]; 0 where it has no word. Names are nouns too."""

    noun_share: float
    verb_share: float
    proper_noun_share: float


def word_shares(texts: Sequence[str]) -> list[WordShares]:
    """Return the shares of each caption; raises `RuntimeError` without spaCy and its word lists."""
    from pipeline.scorers.words import tag_texts

    return [_shares(text, words) for text, words in zip(texts, tag_texts(texts), strict=True)]


def _shares(text: str, tagged: Sequence[Word]) -> WordShares:
    words = [word for word in tagged if any(map(str.isalnum, word.text))]
    if not words:
        return WordShares(0.0, 0.0, 0.0)
    nouns = [word for word in words if word.tag == "noun"]
    verbs = sum(word.tag == "verb" for word in words)
    plain = any(text[word.start].islower() for word in words)
    names = sum(plain and _is_name(text, word) for word in nouns)
    return WordShares(len(nouns) / len(words), verbs / len(words), names / len(words))


def _is_name(text: str, word: Word) -> bool:
    opened = text[: word.start].rstrip(" \"'“‘(")
    return text[word.start].isupper() and bool(opened) and opened[-1] not in ".!?:"
