"""Caption noise for studies: a pure function of (seed, uid, caption number).

Which captions are noisy depends on the seed and not on the kind, and the noisy set of a lower rate
lies inside that of a higher one, so runs of a study differ in nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.schema import Caption
from pipeline.settings import Settings
from pipeline.storage import TEMPORARY_PREFIX
from tcjepa import keyed
from tcjepa.keyed import Bits

Donors = NDArray[np.int32]
Edit = Callable[[list[str], float, int], list[str]]

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_WORDS_OF_64: Final = 2.0**64


class NoiseConfig(Settings):
    """How captions are corrupted at training time."""

    kind: Literal[
        "none", "derangement", "drop_words", "shuffle_words", "truncate", "typos"
    ] = Field(
        "none",
        description="derangement swaps captions between images; the others edit a caption's words",
    )  # fmt: skip
    rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="expected share of captions that are corrupted [share]"
    )
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="words of a corrupted caption that an edit touches [share]"
    )
    seed: int = Field(0, description="seed of the corruption, apart from the run's")


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

    Derangement: caption j of the images D_j = {keyed hash < rate, more than j captions} is shifted
    cyclically along a keyed order of D_j, so no image keeps its own and the multiset of j-th
    captions stays what it was. A swapped caption counts as noisy even where both texts are equal.
    The map is built once per caption number and node and memory-mapped from the cache folder.
    """

    def __init__(self, config: NoiseConfig, index: CaptionedIndex) -> None:
        self.config = config
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
        if self.config.kind == "derangement":
            return self.donor(row, number) >= 0
        word = np.array([int(uid[:16], 16)], dtype=np.uint64)
        return bool(_chosen(word, self.config, number)[0])

    def donor(self, row: int, number: int) -> int:
        """Return the row whose caption replaces caption `number` of `row`, or -1 for none."""
        if not self.active or self.config.kind != "derangement":
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
        own = captions[number]
        if not self.is_noisy(row, uid, number):
            return own["text"]
        if self.config.kind == "derangement":
            return _counterpart(own, number, read(self.donor(row, number)))["text"]
        edit_key = keyed.key("edit", self.config.seed, uid, number)
        words = EDITS[self.config.kind](own["text"].split(), self.config.strength, edit_key)
        return " ".join(words)

    def _map_donors(self, number: int) -> Donors:
        index, config = self._index, self.config
        name = f"{index.fingerprint} {config.seed} {config.rate!r} {number}"
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        path = index.cache_dir / f"donors-{digest}.npy"
        # One process of the node computes; the others wait for it, then map its file.
        with (index.cache_dir / f"donors-{digest}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                donors = derange(index.uid_bits(), index.caption_counts(), config, number)
                temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}.npy")
                np.save(temporary, donors)
                temporary.replace(path)
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


def _counterpart(own: Caption, number: int, donated: Sequence[Caption]) -> Caption:
    """Return the donor's caption of the same number, but of the same source where it has one.

    Lists differ in layout (an image with two alt texts, a captioner that failed). Without this,
    noise in a run on alt texts alone would smuggle in captions of other sources.
    """
    same_number = donated[number % len(donated)]
    alike = [caption for caption in donated if caption["source"] == own["source"]]
    if same_number["source"] == own["source"] or not alike:
        return same_number
    return alike[number % len(alike)]


def drop_words(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Drop each word with chance `strength`; at least one stays."""
    draws = keyed.uniform(edit_key, len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= strength]
    return kept or words[int(np.argmax(draws)) :][:1] if words else []


def shuffle_words(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Permute a share `strength` of the words among their own places."""
    order = keyed.permutation(edit_key, len(words))
    places = sorted(int(place) for place in order[: math.ceil(strength * len(words))])
    permuted = keyed.permutation(keyed.key("places", edit_key), len(places))
    shuffled = list(words)
    for place, source in zip(places, permuted, strict=True):
        shuffled[place] = words[places[int(source)]]
    return shuffled


def truncate(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Cut a share `strength` of the words off the end; at least one stays."""
    del edit_key
    return words[: max(1, math.ceil((1 - strength) * len(words)))]


def typos(words: list[str], strength: float, edit_key: int) -> list[str]:
    """Give each word, with chance `strength`, one typing error: two letters swapped or one wrong.

    Words of one letter keep their letter count: it is replaced.
    """
    draws = keyed.uniform(edit_key, 4 * len(words)).reshape(-1, 4)
    return [
        _mistype(word, float(kind), float(place), float(letter)) if hit < strength else word
        for word, (hit, kind, place, letter) in zip(words, draws, strict=True)
    ]


def _mistype(word: str, kind: float, place: float, letter: float) -> str:
    swaps = [i for i in range(len(word) - 1) if word[i] != word[i + 1]]
    if kind < 0.5 and swaps:
        i = swaps[int(place * len(swaps))]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = int(place * len(word))
    wrong = [other for other in _LETTERS if other != word[i].lower()]
    return word[:i] + wrong[int(letter * len(wrong))] + word[i + 1 :]


#: Edits of a caption's whitespace-separated words, by `NoiseConfig.kind`.
EDITS: Final[dict[str, Edit]] = {
    "drop_words": drop_words,
    "shuffle_words": shuffle_words,
    "truncate": truncate,
    "typos": typos,
}
