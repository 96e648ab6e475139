"""Caption noise for studies: a pure function of (seed, uid, caption number).

Which captions are noisy depends on the seed and not on the kind, and the noisy set of a lower rate
lies inside that of a higher one, so runs of a study differ in nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.schema import Caption
from pipeline.settings import Settings
from tcjepa import keyed
from tcjepa.data.staging import locked, room_for, staged
from tcjepa.keyed import Bits
from tcjepa.noise_spans import SPAN_EDITS
from tcjepa.noise_words import EDITS

Donors = NDArray[np.int32]

_WORDS_OF_64: Final = 2.0**64
#: Kinds that take something from another image's caption.
_DONATED: Final = ("derangement", *SPAN_EDITS)


class NoiseConfig(Settings):
    """How captions are corrupted at training time."""

    kind: Literal[
        "none", "derangement", "drop_words", "shuffle_words", "truncate", "typos",
        "swap_nouns", "swap_attributes", "hallucinate", "weaker",
    ] = Field(
        "none",
        description="derangement swaps captions between images; swap_nouns, swap_attributes and "
        "hallucinate (a sentence added) put another image's things into a caption; weaker takes "
        "the image's caption from weaker_sources; the others edit a caption's words",
    )  # fmt: skip
    rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="expected share of captions that are corrupted [share]"
    )
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="words of a corrupted caption that an edit touches [share]"
    )
    weaker_sources: list[str] | None = Field(
        None, description='sources that kind=weaker takes captions from, e.g. [alt, "blip:*"]'
    )
    seed: int = Field(0, description="seed of the corruption, apart from the run's")

    @model_validator(mode="after")
    def _sources_for_weaker(self) -> NoiseConfig:
        if (self.kind == "weaker") != bool(self.weaker_sources):
            raise ValueError(
                f"kind={self.kind}, weaker_sources={self.weaker_sources}: kind=weaker needs the "
                "sources of the weaker captions, and no other kind reads them"
            )
        return self


class CaptionedIndex(Protocol):
    """What noise needs of an index: one uid word and one caption count per row."""

    fingerprint: str
    cache_dir: Path

    def __len__(self) -> int: ...
    def uid_bits(self) -> Bits:
        """Return (rows,) uint64."""

    def caption_counts(self) -> NDArray[np.int32]:
        """Return (rows,) int32."""


class CaptionNoise:
    """The corruption of one training set; `is_noisy` and `donor` tell tests and monitors the truth.

    Derangement: the images D_j = {keyed hash < rate, more than j captions} lend each other one for
    their j-th, cyclically along a keyed order of D_j, so none keeps its own and each lends once.
    Lent is the j-th, or one of the same source, or failing that of the same captioner. A swapped
    caption counts as noisy even where both texts are equal. The map is built once per caption
    number and node and memory-mapped from the cache folder.

    A noisy caption may still read as it did: one without nouns has none to swap, and an image
    without a caption of the weaker sources keeps its own.

    `sources` are those that captions are read from, as patterns; None for all. An image that has
    none of them lends what it has, so that the rate holds.
    """

    def __init__(
        self, config: NoiseConfig, index: CaptionedIndex, sources: Sequence[str] | None = None
    ) -> None:
        self.config = config
        self._sources = sources
        self._index = index
        self._donors: dict[int, Donors] = {}

    @property
    def active(self) -> bool:
        """Whether any caption can be changed."""
        return self.config.kind != "none" and self.config.rate > 0

    def is_noisy(self, row: int, uid: str, number: int) -> bool:
        """Return whether caption `number` of the image of a row is corrupted."""
        if not self.active:
            return False
        if self.config.kind in _DONATED:
            return self.donor(row, number) >= 0
        word = np.array([int(uid[:16], 16)], dtype=np.uint64)
        return bool(_chosen(word, self.config, number)[0])

    def donor(self, row: int, number: int) -> int:
        """Return the row whose caption replaces, or lends to, caption `number`; -1 for none."""
        if not self.active or self.config.kind not in _DONATED:
            return -1
        if number not in self._donors:
            self._donors[number] = self._map_donors(number)
        return int(self._donors[number][row])

    def text(
        self,
        row: int,
        uid: str,
        number: int,
        captions: Sequence[Caption],
        read: Callable[[int], Sequence[Caption]],
    ) -> str:
        """Return what the model is told as caption `number` of an image.

        `captions` are all of the image's own, `read` returns those of another row.
        """
        own, kind = captions[number], self.config.kind
        if not self.is_noisy(row, uid, number):
            return own["text"]
        if kind == "weaker":
            return self._weaker(uid, captions, number)["text"]
        edit_key = keyed.key("edit", self.config.seed, uid, number)
        if kind in EDITS:
            return " ".join(EDITS[kind](own["text"].split(), self.config.strength, edit_key))
        donated = read(self.donor(row, number))
        other, alike = self._lent(own, number, donated)
        if kind == "derangement":
            return other["text"]
        return SPAN_EDITS[kind](own, captions, [other, *alike], self.config.strength, edit_key)

    def _weaker(self, uid: str, captions: Sequence[Caption], number: int) -> Caption:
        """Return the weaker caption in the place of a stronger one: another for each, if it can."""
        weak = [_is_from(caption, self.config.weaker_sources) for caption in captions]
        found = [caption for caption, is_weak in zip(captions, weak, strict=True) if is_weak]
        if weak[number] or not found:
            return captions[number]
        order = keyed.permutation(keyed.key("weaker", self.config.seed, uid), len(found))
        rank = weak[:number].count(False)
        return found[int(order[rank % len(found)])]

    def _lent(
        self, own: Caption, number: int, donated: Sequence[Caption]
    ) -> tuple[Caption, list[Caption]]:
        """Return the caption that stands for another image's, and others like it, nearest first.

        Lists differ in layout (an image with two alt texts, a captioner that failed). If the number
        alone decided, noise would smuggle captions of other sources into a run on alt texts.
        """
        captioner = own["source"].partition(":")[0]
        nearest_first = [
            [one for one in donated if one["source"] == own["source"]],
            [one for one in donated if one["source"].partition(":")[0] == captioner],
            [one for one in donated if _is_from(one, self._sources)],
            list(donated),
        ]
        nearest, alike = (
            next(found for found in nearest_first[first:] if found) for first in (0, 1)
        )
        same_number = donated[number % len(donated)]
        return same_number if same_number in nearest else nearest[number % len(nearest)], alike

    def _map_donors(self, number: int) -> Donors:
        index, config = self._index, self.config
        name = f"{index.fingerprint} {config.seed} {config.rate!r} {number}"
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        path = index.cache_dir / f"donors-{digest}.npy"
        # One process of the node computes; the others wait for it, then map its file.
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                donors = derange(index.uid_bits(), index.caption_counts(), config, number)
                with staged(path) as sink, room_for(path):
                    np.save(sink, donors)
        donated: Donors = np.load(path, mmap_mode="r")
        return donated


def derange(uids: Bits, counts: NDArray[np.int32], config: NoiseConfig, number: int) -> Donors:
    """Return the donor row of caption `number` of every row, -1 where it stays; (rows,) int32.

    `uids` (rows,) are uid words, `counts` (rows,) captions per image. An image that would be alone
    in D_j takes its caption from the next image that has any, so the rate holds for it as well.
    """
    donors = np.full(len(uids), -1, dtype=np.int32)
    members = np.flatnonzero(_chosen(uids, config, number) & (counts > number))
    if len(members) > 1:
        order = keyed.mix(uids[members], keyed.key("order", config.seed, number))
        cycle = members[np.argsort(order, kind="stable")]
        donors[cycle] = np.roll(cycle, -1)
    elif len(members) == 1:
        others = np.flatnonzero(counts > 0)
        others = others[others != members[0]]
        if len(others):
            following = np.searchsorted(others, members[0]) % len(others)
            donors[members[0]] = others[following]
    return donors


def _chosen(uids: Bits, config: NoiseConfig, number: int) -> NDArray[np.bool_]:
    words = keyed.mix(uids, keyed.key("noisy", config.seed, number))
    if config.rate >= 1:  # 1.0 · 2⁶⁴ does not fit into 64 bits
        return np.ones(len(uids), dtype=np.bool_)
    return words < np.uint64(int(config.rate * _WORDS_OF_64))


def _is_from(caption: Caption, sources: Sequence[str] | None) -> bool:
    return any(fnmatchcase(caption["source"], pattern) for pattern in sources or ())
