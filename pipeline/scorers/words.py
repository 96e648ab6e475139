"""Which words of a caption are things and which are attributes.

With a trained spaCy pipeline (`en_core_web_*`) installed, its part-of-speech tags decide. Those
pipelines are not on the package index, so the usual case is the second one: spaCy's English
tokenizer with a lexicon tagger built from the WordNet word lists of `spacy-lookups-data`
(`lemma_index`, `lemma_exc`, `lemma_rules`) and from context: closed-class words, what opens a noun
phrase, what ends one. A line is logged once when that happens. Either way the result is a pure
function of the text and of what is installed.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipeline.scorers.tagger import Tag, tag_words

log = logging.getLogger(__name__)

#: Characters of a text that are read; what follows is neither tagged nor scored. The longest
#: detailed captions of ShareGPT4V are about 2,000 characters.
MAX_CHARACTERS: Final = 4000

#: Longer runs without a space are no words; spaCy's tokenizer is quadratic in their length.
_LONG_CHUNK: Final = re.compile(r"\S{49,}")

#: Lone surrogates, which spaCy does not take for text, controls, zero-width spaces and marks of
#: direction and byte order: no part of a word.
_UNSEEN: Final = re.compile(
    "[\ud800-\udfff\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)

_TRAINED: Final = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
_FROM_SPACY: Final[dict[str, Tag]] = {
    "NOUN": "noun",
    "PROPN": "noun",
    "ADJ": "attribute",
    "VERB": "verb",
    "PUNCT": "other",
    "SYM": "other",
    "X": "other",
    "SPACE": "other",
}


@dataclass(frozen=True, slots=True)
class Word:
    """A token: lower-cased text, characters [start, end) of the caption, and its class."""

    text: str
    start: int
    end: int
    tag: Tag


def tag_texts(texts: Sequence[str]) -> Iterator[list[Word]]:
    """Yield the tagged tokens of each text, in order; at most `MAX_CHARACTERS` of a text count."""
    name, nlp = language_pipeline()
    # The zone frees the strings of these texts afterwards: without it spaCy keeps every word that
    # it ever saw, and a worker that reads millions of captions grows without bound.
    for start in range(0, len(texts), 512):
        with nlp.memory_zone():
            batch = [_readable(text) for text in texts[start : start + 512]]
            tagged = [
                _trained(doc) if name != "blank" else _tag_tokens(doc)
                for doc in (nlp.pipe(batch) if name != "blank" else map(nlp.tokenizer, batch))
            ]
        yield from tagged


def spans(text: str) -> tuple[list[list[int]], list[list[int]]]:
    """Return the character spans `[start, end)` of a caption's nouns and of its attributes.

    Spans are sorted, disjoint, not empty and without surrounding white space. Hyphenated words
    ("t-shirt") are one span. An attribute is an adjective, or a colour, size, material, texture or
    participle that modifies a noun.
    """
    return spans_of(next(tag_texts([text])))


def spans_of(words: Sequence[Word]) -> tuple[list[list[int]], list[list[int]]]:
    """Return `spans` from tokens that are tagged already."""
    return _class_spans(words, "noun"), _class_spans(words, "attribute")


@functools.cache
def language_pipeline() -> tuple[Literal["trained", "blank"], Any]:
    """Return the spaCy pipeline of this process and whether it is a trained one.

    Raises `RuntimeError` if spaCy is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise RuntimeError(
            "wording scores and word spans need spaCy: pip install spacy spacy-lookups-data"
        ) from error
    installed = spacy.util.get_installed_models()
    for name in _TRAINED:
        if name in installed:
            return "trained", spacy.load(name, disable=["ner", "lemmatizer", "parser"])
    log.info(
        "no trained spaCy pipeline (en_core_web_*) is installed: nouns and attributes come from "
        "the lexicon tagger over spacy-lookups-data"
    )
    return "blank", spacy.blank("en")


def _readable(text: str) -> str:
    """Cut a text to its bound and blank out what cannot be a word, offsets kept."""
    seen = _UNSEEN.sub(" ", text[:MAX_CHARACTERS])
    return _LONG_CHUNK.sub(lambda chunk: " " * len(chunk[0]), seen)


def _tag_tokens(doc: Any) -> list[Word]:
    tokens = [_unhyphened(token.text, token.idx) for token in doc]
    tags = tag_words([text for text, _ in tokens])
    return [
        Word(text.lower(), start, start + len(text), tag)
        for (text, start), tag in zip(tokens, tags, strict=True)
    ]


def _unhyphened(text: str, start: int) -> tuple[str, int]:
    """Take hyphens off the ends of a token ("dog-"), unless it has nothing else."""
    inner = text.strip("-")
    return (inner, start + text.index(inner)) if inner else (text, start)


def _trained(doc: Any) -> list[Word]:
    return [
        Word(
            token.lower_,
            token.idx,
            token.idx + len(token.text),
            _FROM_SPACY.get(token.pos_, "function"),
        )
        for token in doc
    ]


def _class_spans(words: Sequence[Word], tag: Tag) -> list[list[int]]:
    """Return the spans of one class, hyphenated words taken as one."""
    return [
        [group[0].start, group[-1].end]
        for group in _hyphenated(words)
        if _class_of(group) == tag and group[0].start < group[-1].end
    ]


def _hyphenated(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Yield words in groups: parts joined by hyphens without a space ("T", "-", "shirt")."""
    group: list[Word] = []
    for word in words:
        if group and group[-1].end == word.start and _alternate(group[-1], word):
            group.append(word)
            continue
        yield from _ended(group)
        group = [word]
    yield from _ended(group)


def _alternate(left: Word, right: Word) -> bool:
    return (left.text == "-") != (right.text == "-")


def _ended(group: list[Word]) -> Iterator[list[Word]]:
    """Yield a group without hyphens at its ends, if anything is left."""
    inner = group
    while inner and inner[0].text == "-":
        inner = inner[1:]
    while inner and inner[-1].text == "-":
        inner = inner[:-1]
    if inner:
        yield inner


def _class_of(group: Sequence[Word]) -> Tag:
    """The last part decides ("T-shirt" is a shirt), but "blue-eyed" is no verb."""
    first, last = group[0].tag, group[-1].tag
    return "attribute" if last == "verb" and first == "attribute" else last
