"""Claims put into English."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from pipeline.captioners.claims import ANY, Claim
from pipeline.captioners.scene_graph import INVERSES, Thing

_SIDES: Final = {"left of": "to the left of", "right of": "to the right of"}
_PLACES: Final = {
    "left": "on the left side of the picture",
    "right": "on the right side of the picture",
    "top": "at the top of the picture",
    "bottom": "at the bottom of the picture",
    "middle": "in the middle of the picture",
}
_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURALS: Final = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
}
_SPOKEN_AS_CONSONANT: Final = ("uni", "use", "eu", "one")
_OBJECT_FORMS: Final = (
    "There is {}.",
    "The image shows {}.",
    "{} can be seen.",
    "{} is visible in the picture.",
    "The picture contains {}.",
)
_BACKGROUND_FORMS: Final = (
    "The background is {}.",
    "{} is in the background.",
    "The scene is set against {}.",
    "Behind everything there is {}.",
)
_COUNT_FORMS: Final = (
    "There {be} {n} in the picture.",
    "{n} {be} visible.",
    "The image contains {n}.",
)
_SUMMARY_FORMS: Final = ("{}", "A picture of {}", "The image shows {}")


def sentence(claim: Claim, draw: random.Random) -> str:
    """Return one English sentence that says what the claim says."""
    return _capitalised(_words(claim, draw))


def _words(claim: Claim, draw: random.Random) -> str:
    if claim.form == "background":
        return draw.choice(_BACKGROUND_FORMS).format(_with_article(claim.background or ""))
    if claim.form == "summary":
        words = draw.choice(_SUMMARY_FORMS).format(_enumeration(claim.things))
        place = f" with {_with_article(claim.background)} behind" if claim.background else ""
        return f"{words}{place}."
    first = claim.things[0]
    if claim.form == "count":
        return _count(first.category, claim.number, draw)
    if claim.form == "attribute":
        return f"The {first.category} is {' and '.join(first.attributes)}."
    if claim.form == "position":
        return f"{_described(first)} is {_PLACES[claim.position or 'middle']}."
    if claim.form == "relation":
        return _relation(claim, draw)
    return draw.choice(_OBJECT_FORMS).format(_described(first))


def _relation(claim: Claim, draw: random.Random) -> str:
    subject, other = map(_described, claim.things)
    relation = claim.relation or ""
    joint = _SIDES.get(relation, relation)
    if relation in INVERSES and draw.random() < 0.6:
        return f"{subject} is {joint} {other}."
    return f"{subject} {joint} {other}."  # also fits predicates that are verbs: "riding"


def _count(category: str, number: int, draw: random.Random) -> str:
    spelled = _NUMBERS[number] if number < len(_NUMBERS) else str(number)
    counted = f"{spelled} {category if number == 1 else _plural(category)}"
    if category == ANY and number > 1 and draw.random() < 0.5:
        counted += " in total"
    form = draw.choice(_COUNT_FORMS)
    return form.format(be="is" if number == 1 else "are", n=counted)


def _plural(noun: str) -> str:
    *before, last = noun.split(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


def _described(thing: Thing) -> str:
    return _with_article(" ".join([*thing.attributes, thing.category]))


def _enumeration(things: Sequence[Thing]) -> str:
    *before, last = map(_described, things)
    return f"{', '.join(before)} and {last}" if before else last


def _with_article(phrase: str) -> str:
    vowel = phrase[:1].lower() in "aeiou" and not phrase.lower().startswith(_SPOKEN_AS_CONSONANT)
    return f"{'an' if vowel else 'a'} {phrase}"


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
