"""`wording`: how well a caption is worded to say what an image shows, from its text alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pipeline.scorers import lexicon
from pipeline.scorers.words import Word, tag_texts

#: Words at which a caption reaches full marks for length. DataComp's basic filter drops captions
#: of 2 words and fewer, and alt texts that name a thing and say something of it have 5 or more.
FULL_WORDS: Final = 5
#: Words above which length counts against a caption, and where nothing is left; the detailed
#: captions of ShareGPT4V average about 150 words before they are split into sentences.
LONG_WORDS: Final = 150
ENDLESS_WORDS: Final = 600
#: Share of things and attributes among the words at which a caption counts as fully visual.
VISUAL_SHARE: Final = 0.4
#: Relations at which complexity is full. Radenovic et al. 2023 (arXiv 2301.02280, the CAT filter)
#: keep captions with at least one relation; the ramp goes on to three.
FULL_RELATIONS: Final = 3
#: Shares of repeated word pairs at which repetition begins to count and at which nothing is left.
#: Gopher (Rae et al. 2021, table A1) drops documents with more than 20% in one repeated word pair;
#: "a black and white dog … a black and white hoop" must pass.
SOME_REPEATED: Final = 0.2
ALL_REPEATED: Final = 0.6

_ABSTRACT_ENDINGS: Final = ("ness", "ity", "ism", "tion", "sion", "ment", "ance", "ence", "ship")


@dataclass(frozen=True, slots=True)
class WordingParts:
    """The four parts of the wording score, each in [0, 1], higher is better."""

    length: float
    visual: float
    complexity: float
    repetition: float

    @property
    def score(self) -> float:
        """repetition · (0.4 length + 0.4 visual + 0.2 complexity), rounded to 4 decimals.

        Repetition multiplies, because a caption that stutters is bad whatever it repeats; so does
        the absence of any word at all.
        """
        mixed = 0.4 * self.length + 0.4 * self.visual + 0.2 * self.complexity
        return round(self.repetition * mixed, 4)


def wording_scores(texts: Sequence[str]) -> list[float]:
    """Return the wording score of each text, in [0, 1]; 0 for a text without words.

    Only the first `pipeline.scorers.words.MAX_CHARACTERS` characters of a text are read. Raises
    `RuntimeError` if spaCy or its word lists are missing.
    """
    return [wording_parts(words).score for words in tag_texts(texts)]


def wording_parts(tagged: Sequence[Word]) -> WordingParts:
    """Return the parts of the wording score of one tagged caption.

    length: rises to 1 at `FULL_WORDS` words, falls from `LONG_WORDS` to 0 at `ENDLESS_WORDS`.
    visual: share of nouns and attributes among the words over `VISUAL_SHARE`; abstract nouns (by
    ending) count half, file names and digits (tokens without letters) dilute it.
    complexity: attributes, verbs and prepositions that tie things together, over `FULL_RELATIONS`.
    repetition: falls from 1 to 0 as the share of word pairs seen before goes from `SOME_REPEATED`
    to `ALL_REPEATED`.
    """
    words = [word for word in tagged if any(map(str.isalnum, word.text))]
    if not any(word.tag != "other" for word in words):
        return WordingParts(0.0, 0.0, 0.0, 0.0)
    count = len(words)
    fade = (ENDLESS_WORDS - count) / (ENDLESS_WORDS - LONG_WORDS)
    length = _unit(min((count - 1) / (FULL_WORDS - 1), fade))
    seen = sum(_visual_weight(word) for word in words)
    visual = _unit(seen / count / VISUAL_SHARE)
    return WordingParts(length, visual, _complexity(words), _repetition(words))


def _visual_weight(word: Word) -> float:
    if word.tag == "noun":
        return 0.5 if word.text.endswith(_ABSTRACT_ENDINGS) else 1.0
    return 1.0 if word.tag == "attribute" else 0.0


def _complexity(words: Sequence[Word]) -> float:
    things = sum(word.tag == "noun" for word in words)
    if not things:
        return 0.0
    ties = sum(word.tag in {"attribute", "verb"} for word in words)
    ties += min(sum(word.text in lexicon.PREPOSITIONS for word in words), things - 1)
    return _unit(ties / FULL_RELATIONS)


def _repetition(words: Sequence[Word]) -> float:
    if len(words) < 2:
        return 1.0
    pairs = Counter(pairwise(word.text for word in words))
    share = 1.0 - len(pairs) / sum(pairs.values())
    return _unit((ALL_REPEATED - share) / (ALL_REPEATED - SOME_REPEATED))


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)
