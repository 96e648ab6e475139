"""Captions made for measuring: one true caption of an image, and the same with one known fault."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

from pipeline.captioners.claims import Claim, holds
from pipeline.captioners.confusions import wrong_attribute, wrong_category
from pipeline.captioners.scene_graph import SceneGraph, Thing
from pipeline.captioners.wording import sentence

#: What can be wrong with a probe; "right" is the fault of none.
FAULTS: Final = ("swapped", "hallucinated", "wrong attribute", "attributes swapped")


def probes(graph: SceneGraph, other: SceneGraph, seed: str) -> dict[str, str]:
    """Return fault -> caption, "right" first; {} where the image or the other one is too bare.

    Each caption names two things and the background in the same form. swapped: of the other image.
    hallucinated: one thing is of a category that the image has nowhere. wrong attribute: one
    attribute is false. attributes swapped: the things trade theirs. A fault that would be true of
    the image by chance is left out.
    """
    draw = random.Random(seed)
    things, others = _distinct(graph), _distinct(other)
    if len(things) < 2 or len(others) < 2:
        return {}
    first, second = draw.sample(things, 2)
    right = Claim("summary", (first, second), background=graph.background)
    made = {"swapped": Claim("summary", tuple(draw.sample(others, 2)), background=other.background)}
    present = {thing.category for thing in graph.things}
    absent = [name for name in wrong_category(first.category) if name not in present]
    if absent:
        looks = tuple(_other(attribute, draw) for attribute in second.attributes)
        invented = Thing(draw.choice(absent), looks)
        made["hallucinated"] = replace(right, things=(first, invented))
    if first.attributes:
        said = list(first.attributes)
        place = draw.randrange(len(said))
        said[place] = _other(said[place], draw)
        false = replace(first, attributes=tuple(said))
        made["wrong attribute"] = replace(right, things=(false, second))
    traded = (
        replace(first, attributes=second.attributes),
        replace(second, attributes=first.attributes),
    )
    made["attributes swapped"] = replace(right, things=traded)
    false_claims = {fault: claim for fault, claim in made.items() if not holds(claim, graph)}
    form = draw.random()
    return {
        fault: sentence(claim, random.Random(form))
        for fault, claim in {"right": right, **false_claims}.items()
    }


def _distinct(graph: SceneGraph) -> list[Thing]:
    return list(dict.fromkeys(Thing(t.category, t.attributes) for t in graph.things))


def _other(attribute: str, draw: random.Random) -> str:
    return draw.choice(wrong_attribute(attribute))
