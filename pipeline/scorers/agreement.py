"""`agreement`: does a caption say what the image's other captions say?

The other captions of an image are heard as voices, one per captioner (the alt text is one), so that
eight sentences of one model do not outvote the alt text; a caption is left out of its own voice. A
voice supports a caption to a degree s in [0, 1], and captions of *other* images, by the same
source, to e on average, by chance. As in Cohen's kappa (1960),

    agreement = mean over voices of (1 + κ) / 2,    κ = (s - e) / (1 - e) ≥ -1.

1 is a caption of which everything is said elsewhere, 0.5 what a caption of another image has on
average. A voice that says nothing ("buy now") supports nobody, and so leaves a caption at 0.5.

Support is a matter of the kind:

- `words`: share of the caption's claims (things, looks, looks of things) that the voice makes too,
  so a thing that no other caption names lowers the score. No weights, no GPU.
- `encoder`: largest cosine between the caption and one of the voice, by a text encoder.

Dimensions: R reference captions, V their distinct claims, D encoder width.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.scorers.alignment_statistics import key_of

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

#: Reference captions kept of each source ("alt", "annotations:object", …) over the whole run.
REFERENCES: Final = 256
#: Reference captions of one source below which those of all sources are asked.
FEWEST_REFERENCES: Final = 32


@dataclass(frozen=True, slots=True)
class Said:
    """A caption as `agreement` reads it: its text and source, `Caption.source` of the schema."""

    text: str
    source: str

    @property
    def captioner(self) -> str:
        """Who said it: the source without the prompt."""
        return self.source.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Reference:
    """A caption of the run that others are compared with, and the image it belongs to."""

    uid: str
    text: str
    source: str


class Evidence(Protocol):
    """How far voices support captions; what a kind of agreement has to know."""

    def support(self, text: str, voice: Sequence[str]) -> float | None:
        """Return the support of one caption by a voice; None if it says nothing to support."""
        ...

    def reference_support(self, voice: Sequence[str]) -> Doubles:
        """Return the support (R,) of every reference by a voice; NaN where it says nothing."""
        ...


class WordEvidence:
    """Evidence from claims: of each text of the part and of the references."""

    def __init__(
        self, claims: Mapping[str, frozenset[str]], references: Sequence[Reference]
    ) -> None:
        self._claims = claims
        self._places: dict[str, int] = {}
        for reference in references:
            for claim in sorted(claims[reference.text]):
                self._places.setdefault(claim, len(self._places))
        self._made = np.zeros((len(self._places), len(references)), np.uint8)  # (V, R)
        for number, reference in enumerate(references):
            for claim in claims[reference.text]:
                self._made[self._places[claim], number] = 1
        self._sizes = self._made.sum(0, dtype=np.int64)

    def support(self, text: str, voice: Sequence[str]) -> float | None:
        """Return the share of the caption's claims that the voice makes; None without claims."""
        claims = self._claims[text]
        if not claims:
            return None
        return len(claims & self._heard(voice)) / len(claims)

    def reference_support(self, voice: Sequence[str]) -> Doubles:
        """Return the share of each reference's claims that the voice makes, (R,)."""
        known = [self._places[claim] for claim in self._heard(voice) if claim in self._places]
        # Whole numbers until the division, so that equal shares are equal and count as ties.
        found = self._made[known].sum(0, dtype=np.int64)
        share: Doubles = np.full(len(found), np.nan)
        np.divide(found, self._sizes, out=share, where=self._sizes > 0)
        return share

    def _heard(self, voice: Sequence[str]) -> frozenset[str]:
        return frozenset().union(*(self._claims[text] for text in voice))


class EncoderEvidence:
    """Evidence from unit vectors (D,) of each text of the part and of the references."""

    def __init__(self, vectors: Mapping[str, Floats], references: Sequence[Reference]) -> None:
        self._vectors = vectors
        self._references = np.stack([vectors[one.text] for one in references])  # (R, D)

    def support(self, text: str, voice: Sequence[str]) -> float | None:
        """Return the largest cosine between the caption and one of the voice, 4 decimals."""
        return round(float((self._stack(voice) @ self._vectors[text]).max()), 4)

    def reference_support(self, voice: Sequence[str]) -> Doubles:
        """Return the largest cosine between each reference and one of the voice, (R,)."""
        cosines = self._references @ self._stack(voice).T
        largest: Doubles = np.round(cosines.max(1).astype(np.float64), 4)
        return largest

    def _stack(self, voice: Sequence[str]) -> Floats:
        return np.stack([self._vectors[text] for text in voice])


@dataclass
class ReferenceSample:
    """The references of a run: of each source the distinct captions of the lowest hashes."""

    _kept: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    _held: dict[str, set[str]] = field(default_factory=dict)

    def add(self, uid: str, captions: Iterable[Said]) -> None:
        """Offer an image's captions; a text already held of its source is not taken again."""
        for said in captions:
            heap = self._kept.setdefault(said.source, [])
            held = self._held.setdefault(said.source, set())
            if said.text in held:
                continue
            entry = (-key_of(said.text), uid, said.text)  # the largest hash is the heap's first
            if len(heap) < REFERENCES:
                heapq.heappush(heap, entry)
                held.add(said.text)
            elif entry[0] > heap[0][0]:
                held.discard(heapq.heapreplace(heap, entry)[2])
                held.add(said.text)

    def references(self) -> list[Reference]:
        """Return the sample, sorted by source and hash."""
        return [
            Reference(uid, text, source)
            for source, heap in sorted(self._kept.items())
            for _, uid, text in sorted(heap, key=lambda entry: (-entry[0], entry[2]))
        ]


class Agreement:
    """Scores the captions of one image at a time against the run's references.

    `references` are those `evidence` was given.
    """

    def __init__(self, references: Sequence[Reference], evidence: Evidence) -> None:
        self._evidence = evidence
        self._everybody = np.arange(len(references))
        pools: dict[str, list[int]] = {}
        self._numbers: dict[str, int] = {}  # uid -> number of the image
        for place, reference in enumerate(references):
            pools.setdefault(reference.source, []).append(place)
            self._numbers.setdefault(reference.uid, len(self._numbers))
        self._image = np.array([self._numbers[r.uid] for r in references], np.int64)
        self._pools = {
            source: np.array(places)
            for source, places in pools.items()
            if len(places) >= FEWEST_REFERENCES
        }

    def scores(self, uid: str, captions: Sequence[Said]) -> list[float | None]:
        """Return the agreement of each of an image's captions, in [0, 1], 4 decimals.

        None for the only caption of an image and for one that says nothing (see the evidence).
        Costs one look at the references per caption and voice.
        """
        captioners = list(dict.fromkeys(said.captioner for said in captions))
        found: list[float | None] = []
        for number, said in enumerate(captions):
            shares = []
            for captioner in captioners:
                voice = [
                    other.text
                    for place, other in enumerate(captions)
                    if other.captioner == captioner and place != number
                ]
                support = self._evidence.support(said.text, voice) if voice else None
                if support is not None:
                    shares.append(_beyond_chance(support, self._strangers(uid, said.source, voice)))
            found.append(round(sum(shares) / len(shares), 4) if shares else None)
        return found

    def _strangers(self, uid: str, source: str, voice: Sequence[str]) -> Doubles:
        """Return the support of the references of a source that belong to other images."""
        pool = self._pools.get(source, self._everybody)
        if uid in self._numbers:
            pool = pool[self._image[pool] != self._numbers[uid]]
        support: Doubles = self._evidence.reference_support(voice)[pool]
        return support


def _beyond_chance(support: float, strangers: Doubles) -> float:
    """Return (1 + κ) / 2 of a support, chance being the mean of what strangers have."""
    known = strangers[~np.isnan(strangers)]
    chance = float(known.mean()) if len(known) else 0.0
    if chance >= 1.0:  # everybody says the same: agreeing tells nothing
        return 0.5
    return (1 + max((support - chance) / (1 - chance), -1.0)) / 2
