"""Claims about an image: taken from its scene graph, falsified, and checked against it.

A claim is what one caption says, before it is put into words. `holds` decides its truth, so that a
falsified claim is known to be false and not, by chance, true of another object.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from pipeline.captioners.confusions import wrong_attribute, wrong_background, wrong_category
from pipeline.captioners.scene_graph import INVERSES, SceneGraph, Thing

Form = Literal["object", "attribute", "relation", "position", "background", "count", "summary"]

#: The category of a count that speaks of all objects.
ANY: Final = "object"

#: A position and those that cannot be meant by it: what is at the left may be at the top as well.
ELSEWHERE: Final = {
    "left": ("right", "middle"),
    "right": ("left", "middle"),
    "top": ("bottom", "middle"),
    "bottom": ("top", "middle"),
    "middle": ("left", "right", "top", "bottom"),
}
_SUMMARY_LENGTH: Final = 3
_TRIES: Final = 32


@dataclass(frozen=True)
class Claim:
    """What one caption says; the fields that its form does not use are empty.

    `things` are the objects named, with the attributes said of them. In a relation the first is the
    subject and the second the object. `number` counts the things like `things[0]`.
    """

    form: Form
    things: tuple[Thing, ...] = ()
    relation: str | None = None
    position: str | None = None
    background: str | None = None
    number: int = 0


def claims(graph: SceneGraph, draw: random.Random) -> list[Claim]:
    """Return true claims about an image, the forms taking turns in random order."""
    groups = [_objects(graph, draw), _relations(graph), _counts(graph)]
    groups += [_attributes(graph), _positions(graph), _backgrounds(graph)]
    groups.append(_summaries(graph, draw))
    for group in groups:
        draw.shuffle(group)
    draw.shuffle(groups)
    turns = max(len(group) for group in groups)
    return [group[turn] for turn in range(turns) for group in groups if turn < len(group)]


def holds(claim: Claim, graph: SceneGraph) -> bool:
    """Return whether a claim is true of an image, as far as its graph tells."""
    if claim.form == "count":
        category = claim.things[0].category
        like = [t for t in graph.things if category in (ANY, t.category)]
        return claim.number == len(like)
    fits = [[n for n, t in enumerate(graph.things) if _fits(said, t)] for said in claim.things]
    if not all(fits):
        return False
    if claim.background is not None and claim.background != graph.background:
        return False
    if claim.position is not None:
        return any(_position(graph.things[n]) == claim.position for n in fits[0])
    if claim.relation is not None:
        known = set(graph.relations)
        known |= {(o, INVERSES[r], s) for s, r, o in graph.relations if r in INVERSES}
        return any((s, claim.relation, o) in known for s in fits[0] for o in fits[1])
    return True


def falsify(claim: Claim, graph: SceneGraph, draw: random.Random) -> Claim:
    """Return the claim with one thing wrong in it: attribute, object, relation, count, place."""
    slips = [slip for slip in _SLIPS if slip(claim, draw) is not None]
    for _ in range(_TRIES):
        wrong = draw.choice(slips)(claim, draw)
        if wrong is not None and not holds(wrong, graph):
            return wrong
    # An image so full that every slip is true somewhere: speak of what nobody has in a picture.
    return Claim("object", (Thing("unicorn"),))


def _fits(said: Thing, thing: Thing) -> bool:
    return said.category == thing.category and set(said.attributes) <= set(thing.attributes)


def _named(thing: Thing) -> Thing:
    return Thing(thing.category, thing.attributes)


def _objects(graph: SceneGraph, draw: random.Random) -> list[Claim]:
    found = [Claim("object", (_named(t),)) for t in graph.things]
    for thing in graph.things:
        if len(thing.attributes) > 1:
            some = (draw.choice(thing.attributes),)
            found.append(Claim("object", (Thing(thing.category, some),)))
    return list(dict.fromkeys(found))


def _attributes(graph: SceneGraph) -> list[Claim]:
    """Return what "the star is red" says, for objects that are the only ones of their category."""
    alone = Counter(t.category for t in graph.things)
    return [
        Claim("attribute", (Thing(t.category, (attribute,)),))
        for t in graph.things
        for attribute in t.attributes
        if alone[t.category] == 1
    ]


def _relations(graph: SceneGraph) -> list[Claim]:
    return [
        Claim("relation", (_named(graph.things[s]), _named(graph.things[o])), relation=relation)
        for s, relation, o in graph.relations
    ]


def _positions(graph: SceneGraph) -> list[Claim]:
    return [
        Claim("position", (_named(t),), position=place)
        for t in graph.things
        if (place := _position(t)) is not None
    ]


def _position(thing: Thing) -> str | None:
    if thing.box is None:
        return None
    x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
    if abs(x - 0.5) >= max(abs(y - 0.5), 0.17):
        return "left" if x < 0.5 else "right"
    if abs(y - 0.5) >= 0.17:
        return "top" if y < 0.5 else "bottom"
    return "middle"


def _backgrounds(graph: SceneGraph) -> list[Claim]:
    return [] if graph.background is None else [Claim("background", background=graph.background)]


def _counts(graph: SceneGraph) -> list[Claim]:
    counted = Counter(t.category for t in graph.things)
    if len(graph.things) > 1:
        counted[ANY] = len(graph.things)
    return [Claim("count", (Thing(category),), number=n) for category, n in counted.items()]


def _summaries(graph: SceneGraph, draw: random.Random) -> list[Claim]:
    if not graph.things:
        return []
    distinct = list(dict.fromkeys(map(_named, graph.things)))
    things = draw.sample(distinct, min(len(distinct), _SUMMARY_LENGTH))
    return [Claim("summary", tuple(things), background=graph.background)]


_Slip = Callable[[Claim, random.Random], Claim | None]  # None where the claim has no such part


def _slip_attribute(claim: Claim, draw: random.Random) -> Claim | None:
    described = [n for n, t in enumerate(claim.things) if t.attributes]
    if not described:
        return None
    number = draw.choice(described)
    attributes = list(claim.things[number].attributes)
    place = draw.randrange(len(attributes))
    attributes[place] = draw.choice(wrong_attribute(attributes[place]))
    return _with_thing(claim, number, replace(claim.things[number], attributes=tuple(attributes)))


def _slip_category(claim: Claim, draw: random.Random) -> Claim | None:
    if not claim.things or claim.form == "count":
        return None
    number = draw.randrange(len(claim.things))
    wrong = draw.choice(wrong_category(claim.things[number].category))
    return _with_thing(claim, number, replace(claim.things[number], category=wrong))


def _slip_hallucination(claim: Claim, draw: random.Random) -> Claim | None:
    if claim.form != "summary":
        return None
    seen = draw.choice(claim.things)
    attributes = tuple(draw.choice(wrong_attribute(a)) for a in seen.attributes)
    invented = Thing(draw.choice(wrong_category(seen.category)), attributes)
    return replace(claim, things=(*claim.things, invented))


def _slip_relation(claim: Claim, draw: random.Random) -> Claim | None:
    if claim.relation is None:
        return None
    if claim.relation in INVERSES:
        return replace(claim, relation=INVERSES[claim.relation])
    return replace(claim, things=claim.things[::-1])


def _slip_position(claim: Claim, draw: random.Random) -> Claim | None:
    if claim.position is None:
        return None
    return replace(claim, position=draw.choice(ELSEWHERE[claim.position]))


def _slip_background(claim: Claim, draw: random.Random) -> Claim | None:
    if claim.background is None:
        return None
    return replace(claim, background=draw.choice(wrong_background(claim.background)))


def _slip_count(claim: Claim, draw: random.Random) -> Claim | None:
    if claim.form != "count":
        return None
    return replace(claim, number=draw.choice([n for n in range(1, 7) if n != claim.number]))


def _with_thing(claim: Claim, number: int, thing: Thing) -> Claim:
    things = list(claim.things)
    things[number] = thing
    return replace(claim, things=tuple(things))


_SLIPS: Final[tuple[_Slip, ...]] = (
    _slip_attribute,
    _slip_category,
    _slip_hallucination,
    _slip_relation,
    _slip_position,
    _slip_background,
    _slip_count,
)
