"""Captions that are lists of keywords: "star, red, wallpaper, free download, 4k".

Such lists are made for search engines. What gives them away is that item after item is bare: a word
or two, without an article, a preposition, a pronoun or an auxiliary verb. In sentences, commas part
phrases and clauses, which have those ("a black, white and brown dog runs through a field").
"""

from __future__ import annotations

import re
from typing import Final

#: Fewer items than this are no list [items].
LEAST_ITEMS: Final = 3
_MOST_WORDS: Final = 3  # of a bare item

_SEPARATOR: Final = re.compile(r"[,;|•·、]|\s[-–—/]\s|\s?#")
# Words that tie others together; a keyword has none.
_TIES: Final = re.compile(
    r"\b(?:an?|the|this|that|these|those|some|his|her|its|their|my|your|our|and|or|but|nor|with"
    r"|without|of|in|on|at|by|for|from|to|into|onto|over|under|near|through|across|around|behind"
    r"|beside|between|above|below|while|as|if|who|which|where|when|is|are|was|were|be|been|being"
    r"|has|have|had|do|does|did|can|will|he|she|it|they|we|you|i|there|not|no)\b",
    re.I,
)


def keyword_share(text: str) -> float:
    """Return the share of a caption's items that are bare keywords, in [0, 1].

    Items are what commas, semicolons, bars, bullets, hash signs and spaced dashes part. 0 for
    fewer than `LEAST_ITEMS` items.
    """
    items = [item for item in _SEPARATOR.split(text.strip(" .,;|#")) if item.strip()]
    if len(items) < LEAST_ITEMS:
        return 0.0
    return sum(map(_is_bare, items)) / len(items)


def _is_bare(item: str) -> bool:
    return len(item.split()) <= _MOST_WORDS and _TIES.search(item) is None
