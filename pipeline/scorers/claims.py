"""What a caption claims: the things it names, how they look, and which looks belong to which thing.

Two captions of one image agree where one claims what the other claims. Words alone do not show
that "a red star and a blue ring" is no "blue star and a red ring"; the pairs do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pipeline.scorers import lexicon
from pipeline.scorers.words import Word

_PLURAL: Final = re.compile(r"(?<=[^s])s$")
#: Words between attributes of one noun ("black and white dog", "small, red star").
_JOINING: Final = frozenset({"and", ",", "-", "or", "&"})


def claims_of(words: Sequence[Word]) -> frozenset[str]:
    """Return the claims of a tagged caption: nouns, attributes and "attribute noun" pairs.

    An attribute belongs to the next noun of its phrase, or, after a form of "to be", to the noun
    before ("the star is red"). A plural s is dropped. Empty for a caption that names nothing.
    """
    found: set[str] = set()
    pending: list[str] = []  # attributes that wait for their noun
    subject, linked = "", False  # the last noun, and whether "is" came after it
    for word in words:
        if word.tag == "attribute":
            found.add(word.text)
            pending.append(word.text)
            if linked:
                found.add(f"{word.text} {subject}")
        elif word.tag == "noun":
            subject, linked = _PLURAL.sub("", word.text), False
            found.add(subject)
            found.update(f"{attribute} {subject}" for attribute in pending)
            pending = []
        elif word.text not in _JOINING:
            pending = []
            linked = bool(subject) and word.text in lexicon.AUXILIARIES
    return frozenset(found)
