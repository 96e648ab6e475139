"""Words that a weak captioner confuses: a wrong word comes from the group of the right one."""

from __future__ import annotations

from typing import Final

_SCENERY: Final = (
    "meadow", "calm sea", "cloudy sky", "sandy beach", "brick wall", "wooden floor", "night sky",
    "snowy field", "forest", "street", "kitchen", "living room", "parking lot", "mountain", "river",
    "harbour", "office",
)  # fmt: skip
_COLOURS: Final = (
    "red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "white", "black",
    "brown", "gray",
)  # fmt: skip
_OTHER_ATTRIBUTES: Final = (
    ("small", "large"),  # opposites only: a "tiny" for a small thing is no error
    ("tiny", "huge"),
    ("little", "big"),
    ("striped", "dotted", "checkered", "speckled", "shiny"),
    ("young", "old"),
    ("tall", "short"),
    ("open", "closed"),
    ("wooden", "metal", "plastic", "glass", "stone", "brick"),
    ("round", "square", "rectangular"),
    ("standing", "sitting", "lying", "walking", "running"),
)
_CATEGORIES: Final = (
    ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "arrow"),
    ("man", "woman", "boy", "girl", "child", "person"),
    ("dog", "cat", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "bird"),
    ("car", "bus", "truck", "train", "bicycle", "motorcycle", "boat", "airplane"),
    ("chair", "couch", "bed", "bench", "table", "desk", "dining table"),
    ("cup", "bottle", "bowl", "plate", "wine glass", "vase"),
    ("apple", "banana", "orange", "pizza", "cake", "sandwich", "donut", "carrot"),
    ("laptop", "tv", "keyboard", "mouse", "cell phone", "book", "clock"),
    ("backpack", "umbrella", "handbag", "suitcase", "tie", "hat"),
    ("ball", "kite", "frisbee", "skateboard", "surfboard", "tennis racket"),
    ("tree", "flower", "bush", "rock", "fence", "house", "building"),
)


def wrong_category(category: str) -> tuple[str, ...]:
    """Return the categories that could be mistaken for this one; any, for an unknown one."""
    everything = tuple(word for group in _CATEGORIES for word in group)
    return _others(category, _CATEGORIES, everything)


def wrong_attribute(attribute: str) -> tuple[str, ...]:
    """Return the attributes that could be mistaken for this one; colours, for an unknown one."""
    return _others(attribute, (_COLOURS, *_OTHER_ATTRIBUTES), _COLOURS)


def wrong_background(background: str) -> tuple[str, ...]:
    """Return other backgrounds."""
    return _others(background, (_SCENERY,), _SCENERY)


def _others(
    word: str, groups: tuple[tuple[str, ...], ...], otherwise: tuple[str, ...]
) -> tuple[str, ...]:
    group = next((g for g in groups if word in g), otherwise)
    return tuple(other for other in group if other != word)
