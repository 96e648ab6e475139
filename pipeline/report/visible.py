"""Hostile text made safe to show, on a terminal as in HTML: what cannot be seen is spelled out."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

#: Characters shown of a caption or URL; the longest real captions worth reading fit.
TEXT_LIMIT: Final = 240

# Joiners are invisible, but Persian, Indic scripts and emoji are misspelt without them.
_JOINERS: Final = "\u200c\u200d"
_HIDDEN_CATEGORIES: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Marks stacked higher than any script writes them cover the lines around.
_MARKS_IN_A_ROW: Final = 3
_SPACES: Final = re.compile(r"[ \t\r\n\u00a0\u2000-\u200a\u202f\u205f\u3000]+")
_USER_INFO: Final = re.compile(r"(?<=://)[^/?#\s@]*@")


def visible(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return text on one line, at most about `limit` characters, that shows all it holds.

    Terminal escapes, control, direction-changing, unassigned and private characters become
    `⟨U+202E⟩`; runs of spaces and line breaks one space; more than three combining marks in a row
    are left out. A text that was cut says how long it is.
    """
    kept: list[str] = []
    marks = 0
    # Twice the limit leaves room for runs of spaces, without reading all of a long text.
    start = _SPACES.sub(" ", text[: 2 * limit]).strip(" ")
    for character in start[:limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > _MARKS_IN_A_ROW:
            continue
        hidden = category in _HIDDEN_CATEGORIES and character not in _JOINERS
        kept.append(f"⟨U+{ord(character):04X}⟩" if hidden else character)
    cut = len(start) > limit or len(text) > 2 * limit
    return "".join(kept) + (f"… ({len(text):,} characters)" if cut else "")


def without_secrets(text: str) -> str:
    """Return text with the user names and passwords of its URLs left out."""
    return _USER_INFO.sub("…@", text)


__all__ = ["TEXT_LIMIT", "visible", "without_secrets"]
