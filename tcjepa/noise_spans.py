"""Edits of what a caption names, for noise: things and attributes that belong to another image.

The shards mark every caption's nouns and attributes by character spans, so no language model is
needed here. What an edit brings in is in none of the image's captions: right of the image by chance
it can still be, where no caption of it says so. Each edit is a pure function of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, TypeVar

from pipeline.schema import Caption
from tcjepa import keyed
from tcjepa.noise_words import share_of

SpanEdit = Callable[[Caption, Sequence[Caption], Sequence[Caption], float, int], str]
"""(caption, all captions of its image, another image's captions, strength, key) -> text.

The other's first caption lends what it can; a later one only where those before it have nothing.
"""

Part = Literal["nouns", "attributes"]
T = TypeVar("T")

_WORD = re.compile(r"\w+")
_SHORTEST_PLURAL = 3  # letters; "is" and "bus" are none


def swap_nouns(
    own: Caption, image: Sequence[Caption], other: Sequence[Caption], strength: float, edit_key: int
) -> str:
    """Replace a share `strength` of the nouns by nouns of the other image's captions."""
    return _swap(own, _strange(image, other, "nouns"), "nouns", strength, edit_key)


def swap_attributes(
    own: Caption, image: Sequence[Caption], other: Sequence[Caption], strength: float, edit_key: int
) -> str:
    """Replace a share `strength` of the attributes by attributes of the other image's captions."""
    return _swap(own, _strange(image, other, "attributes"), "attributes", strength, edit_key)


def hallucinate(
    own: Caption, image: Sequence[Caption], other: Sequence[Caption], strength: float, edit_key: int
) -> str:
    """Add a sentence about a thing of the other image that no caption of this one names.

    Captioners err like this: one fluent sentence too many (`strength` has no part in it).
    """
    del strength
    named = _named(image)
    strange = _first_that_has(
        [phrase for noun, phrase in _phrases(caption) if _forms(noun).isdisjoint(named)]
        for caption in other
    )
    if not strange:
        return own["text"]
    phrase = strange[int(keyed.uniform(edit_key, 1)[0] * len(strange))]
    return f"{own['text'].rstrip()}{_stop(own['text'])} {_sentence(phrase)}"


def _swap(own: Caption, strange: Sequence[str], part: Part, strength: float, edit_key: int) -> str:
    """Return the text with spans replaced; unchanged where there is nothing strange to put in."""
    text, spans = own["text"], own[part]
    if not strange:
        return text
    order = keyed.permutation(edit_key, len(spans))[: share_of(len(spans), strength)]
    replaced = {int(place): strange[rank % len(strange)] for rank, place in enumerate(order)}
    for place in sorted(replaced, key=lambda place: spans[place][0], reverse=True):
        start, end = spans[place]
        word = replaced[place]
        if text[start : start + 1].isupper():
            word = word[:1].upper() + word[1:]
        text = text[:start] + word + text[end:]
    return text


def _strange(image: Sequence[Caption], other: Sequence[Caption], part: Part) -> list[str]:
    """Return the first spans of the other image's captions of which none of the image's has any."""
    named = _named(image)
    return _first_that_has(
        [word for word in dict.fromkeys(_spanned(one, part)) if _forms(word).isdisjoint(named)]
        for one in other
    )


def _named(image: Sequence[Caption]) -> set[str]:
    """Return what the captions of an image say: every word, and every noun and attribute marked."""
    named: set[str] = set()
    for caption in image:
        named.update(_WORD.findall(caption["text"].casefold()))
        named.update(word.casefold() for word in _spanned(caption, "nouns"))
        named.update(word.casefold() for word in _spanned(caption, "attributes"))
    return {form for word in named for form in _forms(word)}


def _forms(word: str) -> set[str]:
    """Return a word and what it may be the plural of, case-folded: of a dog, dogs are true too."""
    word = word.casefold()
    forms = {word}
    if len(word) > _SHORTEST_PLURAL and word.endswith("s"):
        forms.add(word[:-1])
        if word.endswith("es"):
            forms.add(word[:-2])
        if word.endswith("ies"):
            forms.add(f"{word[:-3]}y")
    return forms


def _spanned(caption: Caption, part: Part) -> list[str]:
    return [caption["text"][start:end] for start, end in caption[part]]


def _first_that_has(found: Iterable[list[T]]) -> list[T]:
    """Return the first list that is not empty, or an empty one."""
    return next((some for some in found if some), [])


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
