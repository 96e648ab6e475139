"""Edits of what a caption names, for noise: things and attributes that belong to another image.

The shards mark every caption's nouns and attributes by character spans, so no language model is
needed here. Each edit is a pure function of its arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

from pipeline.schema import Caption
from tcjepa import keyed

SpanEdit = Callable[[Caption, Sequence[Caption], Caption, float, int], str]
"""(caption, all captions of its image, another image's caption, strength, key) -> text."""

_WORD = re.compile(r"\w+")


def swap_nouns(
    own: Caption, image: Sequence[Caption], other: Caption, strength: float, edit_key: int
) -> str:
    """Replace a share `strength` of the nouns by nouns of the other caption."""
    del image
    return _swap(own, other, "nouns", strength, edit_key)


def swap_attributes(
    own: Caption, image: Sequence[Caption], other: Caption, strength: float, edit_key: int
) -> str:
    """Replace a share `strength` of the attributes by attributes of the other caption."""
    del image
    return _swap(own, other, "attributes", strength, edit_key)


def hallucinate(
    own: Caption, image: Sequence[Caption], other: Caption, strength: float, edit_key: int
) -> str:
    """Add a sentence about a thing of the other caption that no caption of the image names.

    Captioners err like this: one fluent sentence too many (`strength` has no part in it).
    """
    del strength
    named = {word for caption in image for word in _WORD.findall(caption["text"].casefold())}
    strange = [phrase for noun, phrase in _phrases(other) if noun.casefold() not in named]
    if not strange:
        return own["text"]
    phrase = strange[int(keyed.uniform(edit_key, 1)[0] * len(strange))]
    return f"{own['text'].rstrip()}{_stop(own['text'])} {_sentence(phrase)}"


def _swap(
    own: Caption,
    other: Caption,
    part: Literal["nouns", "attributes"],
    strength: float,
    edit_key: int,
) -> str:
    """Return the text with spans replaced; unchanged where the other has nothing different."""
    text, spans = own["text"], own[part]
    known = {text[start:end].casefold() for start, end in spans}
    others = [other["text"][start:end] for start, end in other[part]]
    strange = [word for word in dict.fromkeys(others) if word.casefold() not in known]
    if not strange:
        return text
    order = keyed.permutation(edit_key, len(spans))[: math.ceil(strength * len(spans))]
    replaced = {int(place): strange[rank % len(strange)] for rank, place in enumerate(order)}
    for place in sorted(replaced, key=lambda place: spans[place][0], reverse=True):
        start, end = spans[place]
        word = replaced[place]
        if text[start : start + 1].isupper():
            word = word[:1].upper() + word[1:]
        text = text[:start] + word + text[end:]
    return text


def _phrases(caption: Caption) -> list[tuple[str, str]]:
    """Return (noun, noun with the attributes directly before it) of a caption."""
    text = caption["text"]
    starts = {end: start for start, end in caption["attributes"]}
    phrases = []
    for start, end in caption["nouns"]:
        first = start
        while (before := len(text[:first].rstrip())) in starts and before < first:
            first = starts[before]
        phrases.append((text[start:end], text[first:end]))
    return phrases


def _stop(text: str) -> str:
    return "" if text.rstrip().endswith((".", "!", "?")) else "."


def _sentence(phrase: str) -> str:
    phrase = phrase[:1].lower() + phrase[1:]
    if phrase.endswith("s") and not phrase.endswith("ss"):
        return f"There are also {phrase}."
    article = "an" if phrase[:1] in "aeiou" else "a"
    return f"There is also {article} {phrase}."


#: Edits that need another image's caption, by `NoiseConfig.kind`.
SPAN_EDITS: Final[dict[str, SpanEdit]] = {
    "swap_nouns": swap_nouns,
    "swap_attributes": swap_attributes,
    "hallucinate": hallucinate,
}
