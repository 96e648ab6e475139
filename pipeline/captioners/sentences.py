"""From the text that a captioning model wrote to the captions that are kept."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

OutputFault = Literal["empty_output", "refused"]

#: Sentences whose word sets overlap this much (Jaccard) say the same thing.
NEARLY_IDENTICAL: Final = 0.85
#: A sentence loops if some window of it has fewer distinct words than this share; sentences
#: shorter than the least window do not.
_LOOP_SHARE: Final = 0.34
_LEAST_WINDOW: Final = 12
_WINDOW: Final = 36
_MAX_CHARACTERS: Final = 8000

_WORD: Final = re.compile(r"\w+")
_REFUSAL: Final = re.compile(
    r"^\W*(i'?m sorry|i am sorry|sorry,|i apologi[sz]e|i can ?not|i can'?t|i am (not able|unable)|"
    r"i'?m (not able|unable)|as an ai|as a language model|unfortunately, i)",
    re.IGNORECASE,
)
_LIST_MARK: Final = re.compile(r"^\s*(?:[-*•]+|\d{1,2}[.)])\s+")


def output_fault(text: str) -> OutputFault | None:
    """Return what makes a model's whole answer unusable, or None.

    `empty_output` has no letter, `refused` apologises or says that it cannot.
    """
    words = _WORD.findall(text[:_MAX_CHARACTERS].lower())
    if not any(word[0].isalpha() for word in words):
        return "empty_output"
    return "refused" if _REFUSAL.match(text.replace("’", "'")) else None


def split_sentences(text: str, finished: bool) -> list[str]:
    """Return the sentences of an answer, white space normalised, list marks removed.

    `finished` says that the model ended by itself: otherwise the last sentence is cut off and is
    dropped, unless it is the only one. Sentences without a letter and loops are dropped.
    """
    sentences = []
    for line in text[:_MAX_CHARACTERS].splitlines():
        cleaned = " ".join(_LIST_MARK.sub("", line).replace("*", "").split())
        sentences += [sentence.text.strip() for sentence in _sentencizer()(cleaned).sents]
    if not finished and len(sentences) > 1 and not sentences[-1].endswith((".", "!", "?")):
        sentences.pop()
    return [
        sentence
        for sentence in sentences
        if any(map(str.isalpha, sentence)) and not _loops(_WORD.findall(sentence.lower()))
    ]


def distinct(captions: Iterable[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """Return the first `limit` (text, prompt id) that are not nearly identical to one before."""
    kept: list[tuple[str, str]] = []
    seen: list[frozenset[str]] = []
    for text, prompt in captions:
        if len(kept) == limit:
            break
        words = frozenset(_WORD.findall(text.lower()))
        if any(_overlap(words, other) >= NEARLY_IDENTICAL for other in seen):
            continue
        kept.append((text, prompt))
        seen.append(words)
    return kept


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _loops(words: Sequence[str]) -> bool:
    """Whether a sentence says the same few words over and over somewhere."""
    if len(words) < _LEAST_WINDOW:
        return False
    windows = (words[at : at + _WINDOW] for at in range(0, len(words), _LEAST_WINDOW))
    return any(
        len(window) >= _LEAST_WINDOW and len(set(window)) < _LOOP_SHARE * len(window)
        for window in windows
    )


@functools.cache
def _sentencizer() -> Any:
    try:
        import spacy
    except ImportError as error:
        raise RuntimeError("splitting captions needs spaCy: pip install spacy") from error
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    return nlp
