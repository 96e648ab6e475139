"""A lexicon tagger for English captions: noun, attribute, verb, function word or other.

What a word can be comes from WordNet's lists (through `spacy-lookups-data`); what it is comes from
its place. Captions are mostly noun phrases, so the rules follow those: a determiner, preposition,
number or attribute opens one, the last word that can be a noun is its head, words before the head
are attributes or compound nouns, and what comes after a head is a verb if it can be.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final, Literal

from pipeline.scorers import lexicon

Tag = Literal["noun", "attribute", "verb", "function", "other"]
Kind = Literal["noun", "adj", "verb", "adv"]

_KINDS: Final[tuple[Kind, ...]] = ("noun", "adj", "verb", "adv")
_OPENERS: Final = lexicon.DETERMINERS | lexicon.PREPOSITIONS | {"and", "or", "-"}
_LINKS: Final = frozenset({"and", "or", ",", "-", "&"})


def tag_words(words: Sequence[str]) -> list[Tag]:
    """Return the class of each token of one text, in order."""
    lowered = [word.lower().strip("'’") or word for word in words]
    known = [_look(word) for word in lowered]
    tags: list[Tag] = []
    for number in range(len(lowered)):
        tags.append(_decide(lowered, known, tags, number))
    return tags


def can_be(word: str) -> frozenset[Kind]:
    """Return the word classes that WordNet lists for a lower-case word, inflected or not."""
    return _look(word)[1]


@functools.cache
def _lexicon() -> dict[Kind, tuple[frozenset[str], dict[str, list[str]], list[list[str]]]]:
    """Return word list, exceptions and suffix rules of each class; `RuntimeError` if missing."""
    try:
        from spacy.lookups import load_lookups

        tables = load_lookups("en", ["lemma_index", "lemma_exc", "lemma_rules"])
    except (ImportError, ValueError) as error:
        raise RuntimeError(
            "nouns and attributes need spaCy's word lists: pip install spacy spacy-lookups-data"
        ) from error
    index, exceptions, rules = (
        tables.get_table(name) for name in ("lemma_index", "lemma_exc", "lemma_rules")
    )
    return {
        kind: (frozenset(index[kind]), dict(exceptions[kind]), list(rules[kind])) for kind in _KINDS
    }


Look = tuple[Tag | None, frozenset[Kind], bool]


@functools.lru_cache(maxsize=100_000)
def _look(word: str) -> Look:
    """Return (class if the word alone decides it, possible classes, can be a finite verb)."""
    if word in lexicon.FUNCTION_WORDS:
        return "function", frozenset(), False
    if not any(character.isalpha() for character in word):
        return "other", frozenset(), False
    found: set[Kind] = set()
    verb_lemmas: set[str] = set()
    for kind, (index, exceptions, rules) in _lexicon().items():
        lemmas = {word, *exceptions.get(word, ())}
        lemmas |= {word[: -len(old)] + new for old, new in rules if old and word.endswith(old)}
        lemmas &= index
        if lemmas:
            found.add(kind)
        if kind == "verb":
            verb_lemmas = lemmas
    if word in lexicon.VISIBLE_ATTRIBUTES:
        found.add("adj")
    if (
        "noun" not in found
        and len(word) > 3
        and word.endswith(("man", "men", "boarder", "boarders"))
    ):
        found.add("noun")
    if not found:
        if word.endswith("ly"):
            return "function", frozenset(), False
        # Names and misspellings: most unknown words of captions name things.
        found = {"verb"} if word.endswith(("ing", "ed")) else {"noun"}
    if found == {"adv"} or (
        word.endswith("ly") and "adv" in found and word not in lexicon.LY_EXCEPTIONS
    ):
        return "function", frozenset(), False
    finite = bool(verb_lemmas & lexicon.CAPTION_VERBS)
    return None, frozenset(found), finite


def _decide(words: Sequence[str], known: Sequence[Look], tags: Sequence[Tag], number: int) -> Tag:
    fixed, kinds, finite = known[number]
    if fixed is not None:
        return fixed
    word = words[number]
    before = words[number - 1] if number else ""
    previous: Tag | None = tags[number - 1] if number else None
    # Inside a noun phrase: something opened it and no head noun has come yet.
    opened = number == 0 or previous == "attribute" or before in _OPENERS or before == ","
    heads_follow = _noun_follows(known, words, number)
    if (
        word in {"left", "right"}
        and number + 1 < len(words)
        and words[number + 1] in {"of", "side"}
    ):
        return "function"
    if before == "to" and "verb" in kinds and finite:
        return "verb"
    if word in lexicon.VISIBLE_ATTRIBUTES:
        return _visible(word, kinds, before, heads_follow)
    if word.endswith("ing") and "verb" in kinds and word not in lexicon.ING_NOUNS:
        return (
            "attribute" if opened and before not in _LINKS and heads_follow and number else "verb"
        )
    if word.endswith("ed") and len(word) > 4 and ("verb" in kinds or "noun" not in kinds):
        return "attribute" if opened and heads_follow else "verb"
    if not opened and finite and previous != "verb":
        return _after_head(words, known, tags, number)
    if "noun" in kinds:
        adjective_first = "adj" in kinds and heads_follow and (opened or "verb" not in kinds)
        return "attribute" if adjective_first and _mostly_adjective(word) else "noun"
    if "adj" in kinds:
        return "attribute"
    return "verb" if "verb" in kinds else "function"


def _visible(word: str, kinds: frozenset[Kind], before: str, heads_follow: bool) -> Tag:
    """A colour, size or material: an attribute, unless it stands alone as a thing ("a glass")."""
    thing = "noun" in kinds and word in lexicon.MATERIALS and not heads_follow
    thing = thing and before not in lexicon.AUXILIARIES  # "the star is orange"
    return "noun" if thing or (word == "light" and before == "the") else "attribute"


def _after_head(
    words: Sequence[str], known: Sequence[Look], tags: Sequence[Tag], number: int
) -> Tag:
    """A word after a noun or pronoun that can be a finite caption verb ("a dog runs")."""
    if "noun" not in known[number][1]:
        return "verb"
    word, head = words[number], words[number - 1]
    third_person = word.endswith("s") and not word.endswith("ss")
    plural = head in _PLURALS or (head.endswith("s") and not head.endswith("ss"))
    ends = number + 1 == len(words) or known[number + 1][0] is not None
    if tags[number - 1] == "function":  # a pronoun or adverb: "who plays", "together stand"
        return "verb" if ends else "noun"
    start = _clause_start(words, number)
    has_verb = any(
        tag == "verb" and not verb.endswith("ing")
        for tag, verb in zip(tags[start:], words[start:number], strict=True)
    )
    # A singular head takes "plays", a plural one "play"; after either, one finite verb a clause.
    # A determiner next means an object follows, whatever noun stood before ("in shorts throws a").
    if number + 1 < len(words) and words[number + 1] in lexicon.DETERMINERS and not has_verb:
        return "verb"
    agrees = third_person != plural and (third_person or ends)
    return "verb" if agrees and not has_verb else "noun"


_PLURALS: Final = frozenset({"people", "men", "women", "children", "police", "crowd"})


def _clause_start(words: Sequence[str], number: int) -> int:
    for place in range(number - 1, -1, -1):
        if words[place] in _CLAUSE_OPENERS:
            return place
    return 0


_CLAUSE_OPENERS: Final = frozenset({".", ";", "while", "and", "as", "who", "which", "that"})


def _noun_follows(known: Sequence[Look], words: Sequence[str], number: int) -> bool:
    """Whether the noun phrase goes on: the next words, linking ones skipped, can hold its head."""
    for place in range(number + 1, min(number + 5, len(words))):
        fixed, kinds, finite = known[place]
        if words[place] in _LINKS and words[place] != "and":
            continue
        if words[place] == "and":
            # "black and white dog": the phrase goes on only if an attribute comes next.
            if place + 1 < len(words) and words[place + 1] in lexicon.VISIBLE_ATTRIBUTES:
                continue
            return False
        if fixed is not None:
            return False
        if "noun" in kinds and not (finite and place > number + 1):
            return True
        if "adj" not in kinds and "verb" not in kinds:
            return False
    return False


@functools.lru_cache(maxsize=50_000)
def _mostly_adjective(word: str) -> bool:
    """Whether a word that is both noun and adjective is the latter before a noun.

    WordNet lists almost every noun that ever modified another as an adjective ("star", "soccer"),
    so only endings that make adjectives and a short list count.
    """
    return word in lexicon.ADJECTIVES_FIRST or word.endswith(
        ("ful", "ous", "ish", "less", "able", "ible", "ic", "al", "ian", "ese", "ive", "ent", "ant")
    )
