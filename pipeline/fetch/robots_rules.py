"""The rules of a robots.txt for one crawler, as RFC 9309 reads them; small, and linear to match."""

from __future__ import annotations

import re
from typing import Final

from pipeline.fetch.spelling import normal_escapes, normal_path

#: Rules kept of a file, and letters in them all; a file with more forbids everything.
MAX_RULES: Final = 5000
MAX_TEXT: Final = 131_072
_EVERYTHING: Final = "-/"
_PRODUCT: Final = re.compile("[A-Za-z_-]*")


def parse_rules(data: bytes, agent: str | None) -> str:
    """Return the rules for a crawler: those of all groups that name it, else those for all.

    They are one string, which is a tenth of the memory of a list: in each line `+` (allow) or `-`
    (disallow) and a pattern in its normal spelling.
    """
    ours = _product(agent) if agent else None
    rules: dict[str | None, dict[str, None]] = {}
    group: set[str | None] = set()
    named = False  # whether the line before, others than rules left aside, named a crawler
    text = data.decode("utf-8-sig", errors="replace").replace("\r", "\n")
    for line in text.split("\n"):
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        key = key.lower()
        if key == "user-agent":
            group = group if named else set()
            named = True
            name = None if value.split()[:1] == ["*"] else _product(value)
            if name in (None, ours):
                group.add(name)
                rules.setdefault(name, {})
        elif key in ("allow", "disallow"):
            named = False
            if value and group:
                rule = ("+" if key == "allow" else "-") + _pattern(value)
                for name in group:
                    if len(rules[name]) <= MAX_RULES:
                        rules[name][rule] = None
    found = rules.get(ours, rules.get(None, {})) if ours else rules.get(None, {})
    kept = "\n".join(found)
    return _EVERYTHING if len(found) > MAX_RULES or len(kept) > MAX_TEXT else kept


def allows(rules: str, path: str) -> bool:
    """Return whether rules allow a path and query: the longest that matches says, allow on a tie.

    Length is that of the pattern.
    """
    path = normal_path(path)
    longest, allowed = 0, True
    for rule in rules.split("\n"):
        length = len(rule) - 1
        if length < longest or (length == longest and rule[0] == "-"):
            continue
        if _matches(rule[1:], path):
            longest, allowed = length, rule[0] == "+"
    return allowed


def _product(name: str) -> str:
    """Return a crawler's product token: `Bot` of `bot/2.0`, in lower case."""
    found = _PRODUCT.match(name)
    assert found is not None
    return (found[0] or name).lower()


def _pattern(value: str) -> str:
    pattern = normal_escapes(value)
    return pattern if pattern.startswith(("/", "*")) else "/" + pattern


def _matches(pattern: str, path: str) -> bool:
    """Return whether a pattern, with `*` anywhere and `$` as its end, matches where a path begins.

    Each piece between stars is looked for once, after the one before: no way back is tried.
    """
    ends = pattern.endswith("$")
    first, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    if not pieces:
        return not ends or path == first
    at = len(first)
    last = pieces.pop() if ends else ""
    for piece in pieces:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return not ends or (path.endswith(last) and len(path) - len(last) >= at)
