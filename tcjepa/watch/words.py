"""Words of a caption as people read them, from the pieces that a text encoder cuts it into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: English words that show nothing; a caption in another language simply shows more words.
_FUNCTION_WORDS: Final = (
    "a about above an and are as at be been behind below beside between but by can each for from "
    "had has have he her his i in into is it its near next no not of off on one or our out over "
    "she so some than that the their them there these they this to under up was we were which "
    "while who will with you your"
)
_FUNCTION: Final = frozenset(_FUNCTION_WORDS.split())
#: From Thai on, most scripts are written without spaces, so that touching says nothing.
_UNSPACED: Final = "\u0e00"


@dataclass(frozen=True)
class Word:
    """A word of a caption and which of the encoder's pieces it consists of."""

    text: str
    pieces: tuple[int, ...]  # numbers along S


def content_words(caption: str, spans: Sequence[tuple[int, int]], most: int) -> list[Word]:
    """Return up to `most` words worth a map: no function words, each once, in caption order.

    `spans` are the characters of each piece (`TextEncoder.spans_of`). Pieces that touch are one
    word, unless the script has no spaces. A caption of function words alone gives these.
    """
    words = _words(caption, spans)
    telling = [word for word in words if word.text.casefold() not in _FUNCTION]
    chosen: dict[str, Word] = {}
    for word in telling or words:
        chosen.setdefault(word.text.casefold(), word)
    return list(chosen.values())[:most]


def _words(caption: str, spans: Sequence[tuple[int, int]]) -> list[Word]:
    groups: list[list[int]] = []
    for number, (start, end) in enumerate(spans):
        if start == end or not any(sign.isalnum() for sign in caption[start:end]):
            continue
        last = spans[groups[-1][-1]] if groups else None
        if last is not None and last[1] == start and caption[start] < _UNSPACED:
            groups[-1].append(number)
        else:
            groups.append([number])
    return [
        Word(caption[spans[group[0]][0] : spans[group[-1]][1]], tuple(group)) for group in groups
    ]


__all__ = ["Word", "content_words"]
