"""From the text that a captioning model wrote to the captions that are kept."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

OutputFault = Literal["empty_output", "refused", "degenerate"]

#: Sentences whose word sets overlap this much (Jaccard) say the same thing.
NEARLY_IDENTICAL: Final = 0.85
#: A sentence loops if some window of it has fewer distinct words than this share; sentences
#: shorter than the least window do not.
_LOOP_SHARE: Final = 0.34
_LEAST_WINDOW: Final = 12
_WINDOW: Final = 36
_LONGEST_WORD: Final = 60
_MAX_CHARACTERS: Final = 8000

_WORD: Final = re.compile(r"\w+")
_CONTROLS: Final = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]"
)
_APOSTROPHES: Final = re.compile("[\u2018\u2019\u02bc\u2032`\u00b4]")
#: What a reasoning model thinks before it answers; unfinished if the token limit cut it off.
_THOUGHTS: Final = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_LIST_MARK: Final = re.compile(r"^\s*(?:[-*•#]+|\d{1,2}[.)])\s+")
_PREFACE: Final = re.compile(
    r"^(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok)\s*(?:[,!.:]+\s*|$)"
    r"|(?:here(?:'s| is| are)|this is)\b[^.:]{0,80}\b(?:description|caption|summary|sentence)s?\b"
    r"[^.:]{0,60}:\s*"
    r"|(?:(?:image|short|brief|detailed)\s+)?(?:description|caption|answer)\s*:\s*)+",
    re.IGNORECASE,
)
#: The start of a sentence that speaks of what the model cannot do.
_REFUSAL: Final = re.compile(
    r"^\W*(?:(?:unfortunately|sorry|my apologies|apologies|hello|hi|however|but|as such)\W+)*(?:"
    r"i'?m (?:very |so |really )?sorry|i am (?:very |so |really )?sorry|i (?:do )?apologi[sz]e"
    r"|i (?:really |just |simply )?(?:can ?not|can'?t|could not|couldn'?t|will not|won'?t"
    r"|am not able|am unable|am not allowed|do not have the ability|don'?t have the ability)\b"
    r"|i'?m (?:really |just |simply )?(?:unable|not able|not allowed|not permitted|an ai)\b"
    r"|as an? (?:[\w-]+ ){0,3}(?:ai|assistant|language model)\b"
    r"|(?:there is|there's) no image (?:attached|provided)|no image (?:was|has been|is) "
    r"|please (?:provide|upload|share|attach|send)\b)",
    re.IGNORECASE,
)


def usable_sentences(text: str, finished: bool) -> tuple[list[str], OutputFault | None]:
    """Return the sentences of an answer that tell of the image, and a fault if there are none.

    `empty_output` has no letter, `refused` begins by apologising or says that it cannot, and
    `degenerate` has loops only. What comes before the description ("Sure! Here is a caption:")
    and a model's thoughts are left out, and so is a sentence that refuses further on in an answer
    that tells something.
    """
    sentences = [
        sentence
        for sentence in (_without_preface(part) for part in split_sentences(text, finished))
        if any(map(str.isalpha, sentence))
    ]
    if not sentences:
        return [], "empty_output"
    if _refuses(sentences[0]):
        return [], "refused"
    sound = [
        sentence
        for sentence in sentences
        if not _refuses(sentence) and not _loops(_WORD.findall(sentence.lower()))
    ]
    return sound, None if sound else "degenerate"


def split_sentences(text: str, finished: bool) -> list[str]:
    """Return the sentences of an answer, white space normalised, list marks removed.

    `finished` says that the model ended by itself: otherwise the last sentence is cut off and is
    dropped, unless it is the only one. Control characters and halves of surrogate pairs, which a
    server may send and UTF-8 cannot hold, are removed.
    """
    text = _THOUGHTS.sub("", text)
    finished = finished and len(text) <= _MAX_CHARACTERS
    text = text[:_MAX_CHARACTERS].encode(errors="ignore").decode()
    sentences = []
    for line in _CONTROLS.sub("", text).splitlines():
        cleaned = " ".join(_LIST_MARK.sub("", line).replace("*", "").split())
        sentences += [sentence.text.strip() for sentence in _sentencizer()(cleaned).sents]
    if not finished and len(sentences) > 1 and not sentences[-1].endswith((".", "!", "?")):
        sentences.pop()
    return sentences


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


def _without_preface(sentence: str) -> str:
    preface = _PREFACE.match(_plain(sentence))
    return sentence[preface.end() :] if preface else sentence


def _refuses(sentence: str) -> bool:
    return _REFUSAL.match(_plain(sentence)) is not None


def _plain(sentence: str) -> str:
    return _APOSTROPHES.sub("'", sentence)


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def _loops(words: Sequence[str]) -> bool:
    """Whether a sentence says the same few words over and over somewhere, or one without end."""
    if any(len(word) > _LONGEST_WORD for word in words):
        return True
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
