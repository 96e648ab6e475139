"""Alt texts as the web has them, right and wrong, for a scene whose truth is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pipeline.sources.scenes.languages import LANGUAGES
from pipeline.sources.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, UNMARKED
from pipeline.sources.scenes.world import Scene, SceneObject

_PLACES: Final = {
    "meadow": "on a meadow",
    "calm sea": "over a calm sea",
    "cloudy sky": "against a cloudy sky",
    "sandy beach": "on a sandy beach",
    "brick wall": "in front of a brick wall",
    "wooden floor": "on a wooden floor",
    "night sky": "in the night sky",
    "snowy field": "in a snowy field",
}
_SIDES: Final = {"left of": "to the left of", "right of": "to the right of"}
_OPPOSITES: Final = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
_BOILERPLATE: Final = (
    "Buy now and get free shipping on all orders",
    "Click here to enlarge",
    "Image may be subject to copyright",
    "Sign up for our newsletter and save 20%",
    "Add to cart",
    "Share this on Facebook, Twitter and Pinterest",
    "This image has no description",
    "Loading, please wait...",
    "Best price guaranteed - order online today!",
    "All rights reserved. Do not reproduce without permission.",
    "Read more about this product in our shop",
    "Advertisement",
)
_KEYWORDS: Final = (
    "stock photo", "free download", "hd", "wallpaper", "clipart", "vector", "royalty free", "4k",
    "desktop background", "design", "art", "print", "poster", "best", "2024",
)  # fmt: skip


@dataclass(frozen=True)
class _Telling:
    """What an alt text says, before it is put into words; the main object is always named."""

    main: SceneObject
    second: SceneObject | None
    relation: str | None  # of main to second
    background: str | None


def alt_text(fault: str, shown: Scene, partner: Scene | None, draw: random.Random) -> list[str]:
    """Return the alt text of a scene, in a list of 0 or 1.

    `fault` is a field name of `CaptionShares`; `partner` is the scene that a swapped alt text
    describes (None for other faults).
    """
    if fault == "empty":
        return []
    if fault == "swapped":
        assert partner is not None
        return [_right(partner, draw)]
    return [_WRITERS[fault](shown, draw)]


def _right(shown: Scene, draw: random.Random) -> str:
    return _say(_telling(shown, draw), draw)


def _partial(shown: Scene, draw: random.Random) -> str:
    return _say(_falsified(_telling(shown, draw), shown, draw), draw)


def _telling(shown: Scene, draw: random.Random) -> _Telling:
    """Choose what to tell: the prominent object, often its place, often a second object."""
    main = shown.prominent
    number = shown.objects.index(main)
    background = shown.background if draw.random() < 0.6 else None
    related = [(s, r, o) for s, r, o in shown.relations if s == number]
    if related and draw.random() < 0.5:
        _, relation, other = draw.choice(related)
        return _Telling(main, shown.objects[other], relation, background)
    if len(shown.objects) > 1 and draw.random() < 0.5:
        second = draw.choice([o for o in shown.objects if o is not main])
        return _Telling(main, second, None, background)
    return _Telling(main, None, None, background)


def _falsified(told: _Telling, shown: Scene, draw: random.Random) -> _Telling:
    """Make one thing told false of the scene."""
    options = ["colour", "shape"]
    if told.background is not None:
        options.append("background")
    if told.relation is not None:
        options.append("relation")
    elif told.second is not None:
        options.append("second")
    what = draw.choice(options)
    if what == "background":
        wrong = draw.choice([name for name in BACKGROUNDS if name != told.background])
        return replace(told, background=wrong)
    if what == "relation":
        assert told.relation is not None
        return replace(told, relation=_OPPOSITES[told.relation])
    if what == "second":
        assert told.second is not None
        shape, colour = draw.choice(_absent(shown))
        return replace(told, second=replace(told.second, shape=shape, colour=colour))
    shape, colour = draw.choice(
        [
            pair
            for pair in _absent(shown)
            if (pair[0] == told.main.shape) == (what == "colour")
            and (pair[1] == told.main.colour) == (what == "shape")
        ]
    )
    return replace(told, main=replace(told.main, shape=shape, colour=colour))


def _absent(shown: Scene) -> list[tuple[str, str]]:
    """Return the (shape, colour) pairs that no object of the scene has."""
    present = {(o.shape, o.colour) for o in shown.objects}
    return [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in present]


def _say(told: _Telling, draw: random.Random) -> str:
    words = _with_article(_phrase(told.main, draw))
    if told.second is not None:
        second = _with_article(_phrase(told.second, draw))
        relation = told.relation
        words += f" {_SIDES.get(relation, relation)} " if relation else draw.choice(_ANDS)
        words += second
    if told.background is not None:
        words += f" {_PLACES[told.background]}"
    return _finish(draw.choice(_OPENINGS).format(words), draw)


_ANDS: Final = (" and ", " with ", " together with ")
_OPENINGS: Final = (
    "{}", "{}", "{}", "photo of {}", "a picture of {}", "an image showing {}", "there is {}",
    "here you see {}",
)  # fmt: skip


def _phrase(item: SceneObject, draw: random.Random) -> str:
    """Return size, texture (both sometimes), colour and shape."""
    said = [item.size] if draw.random() < 0.5 else []
    said += [item.texture] if draw.random() < 0.7 else []
    return " ".join([*(word for word in said if word not in UNMARKED), item.colour, item.shape])


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _finish(text: str, draw: random.Random) -> str:
    text = text[0].upper() + text[1:] if draw.random() < 0.8 else text
    return text + ("." if draw.random() < 0.5 else "")


def _boilerplate(shown: Scene, draw: random.Random) -> str:
    return draw.choice(_BOILERPLATE)


def _filename(shown: Scene, draw: random.Random) -> str:
    item, number = shown.prominent, draw.randrange(10_000)
    name = draw.choice(
        (
            f"IMG_{number:04d}",
            f"DSC{number:05d}",
            f"{item.colour}-{item.shape}-{number}",
            f"{item.shape}_final({number % 10})",
            f"Screenshot_2023-0{1 + number % 9}-1{number % 10}",
            f"{draw.getrandbits(64):016x}",
        )
    )
    return name + draw.choice((".jpg", ".JPG", ".png", ".jpeg", ".webp"))


def _foreign(shown: Scene, draw: random.Random) -> str:
    language = LANGUAGES[draw.choice(tuple(LANGUAGES))]
    things = [(shown.prominent.shape, shown.prominent.colour)]
    others = [o for o in shown.objects if o is not shown.prominent]
    if others and draw.random() < 0.5:
        other = draw.choice(others)
        things.append((other.shape, other.colour))
    return language.describe(things, shown.background, draw.randrange(6))


def _short(shown: Scene, draw: random.Random) -> str:
    item = shown.prominent
    words = (item.shape, item.colour, f"{item.colour} {item.shape}", "image", "photo", "pic 1", "x")
    return draw.choice(words)


def _keywords(shown: Scene, draw: random.Random) -> str:
    item = shown.prominent
    words = [item.shape, item.colour, shown.background, f"{item.colour} {item.shape}"]
    words += draw.sample(_KEYWORDS, draw.randint(2, 6))
    draw.shuffle(words)
    return ", ".join(words)


_WRITERS: Final[dict[str, Callable[[Scene, random.Random], str]]] = {
    "right": _right,
    "partial": _partial,
    "boilerplate": _boilerplate,
    "filename": _filename,
    "foreign": _foreign,
    "short": _short,
    "keywords": _keywords,
}
