"""Concept balancing: common things are thinned out, rare ones stay.

MetaCLIP (Xu et al. 2023, arXiv 2309.16671, algorithm 1): captions are matched with a list of
concepts; a concept on c images keeps each of them with probability min(1, t / c); an image stays if
any of its concepts keeps it. Two differences: whole words are matched, where MetaCLIP matches
substrings, and images are counted, where it counts texts.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.filters.keys import Words, mixed
from pipeline.filters.phrases import phrase_table, read_lines
from pipeline.settings import Settings

Rows = npt.NDArray[np.int64]

#: `BalanceConfig.concepts` that stands for the nouns of the captions themselves.
NOUNS = "nouns"


class BalanceConfig(Settings):
    """How many images of one concept are kept."""

    concepts: str | list[str] = Field(
        default=NOUNS,
        min_length=1,
        description="a list, or the path of a text file with one concept a line (MetaCLIP: "
        "500,000 words and phrases of WordNet and Wikipedia), or `nouns`: every noun that a "
        "caption has",
    )
    limit: int = Field(
        default=20_000,
        ge=1,
        description="images kept per concept, in expectation and if they have no other (MetaCLIP: "
        "20,000 for 400 million pairs) [images]",
    )
    seed: int = Field(default=0, ge=0, description="of the draws, which depend on the uid alone")
    unmatched: Literal["drop", "keep"] = Field(
        default="drop", description="what becomes of images without any concept (MetaCLIP: drop)"
    )


def concept_list(config: BalanceConfig) -> pa.Array | None:
    """Return the concepts as they are compared, None for `nouns`; raises `ConfigError`.

    What is drawn depends on them, so they belong into a fingerprint.
    """
    if config.concepts == NOUNS:
        return None
    key = "filter.balance.concepts"
    given = config.concepts
    return phrase_table(read_lines(given, key) if isinstance(given, str) else given, key)


def span_texts(texts: pa.Array, spans: pa.ListArray) -> tuple[Rows, pa.Array]:
    """Return the words that spans mark in texts: (number of the text (m,), word (m,) of string).

    `texts` (n,) of string; `spans` (n,) of list<list<int32>>, `[start, end)` in characters.
    Words are lower-cased.
    """
    counts = np.asarray(pc.fill_null(pc.list_value_length(spans), 0), dtype=np.int64)
    owner = np.repeat(np.arange(len(texts)), counts)
    if not len(owner):
        return owner, pa.array([], pa.string())
    bounds = np.asarray(spans.flatten().flatten(), dtype=np.int64).reshape(-1, 2)
    content = texts.cast(pa.large_binary())
    offsets = np.frombuffer(content.buffers()[1], np.int64)[content.offset :][: len(texts) + 1]
    data = np.frombuffer(content.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    # A character starts at every byte that does not continue one (UTF-8: 10xxxxxx).
    place = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))
    first = np.searchsorted(place, offsets - offsets[0])
    starts = place[first[owner] + bounds[:, 0]]
    ends = place[first[owner] + bounds[:, 1]]
    lengths = ends - starts
    new = np.concatenate([[0], np.cumsum(lengths)])
    picked = data[np.repeat(starts - new[:-1], lengths) + np.arange(new[-1])]
    buffers = [None, pa.py_buffer(new.astype(np.int64)), pa.py_buffer(picked)]
    words = pa.Array.from_buffers(pa.large_string(), len(lengths), buffers)
    return owner, pc.utf8_lower(words.cast(pa.string()))


def concept_keys(concepts: pa.Array) -> Words:
    """Return 64 bits of SHA-256 of each concept (c,)."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in concepts.to_pylist())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def balanced(
    images: Rows, concepts: Rows, uids: Words, keys: Words, config: BalanceConfig
) -> npt.NDArray[np.bool_]:
    """Return which of n images are kept.

    `images` and `concepts` (m,) are the distinct pairs of an image's place and a concept's number;
    `uids` (n, 2) from `uid_words`, `keys` (c,) from `concept_keys`. Whether a concept keeps an
    image is a pure function of (seed, uid, concept, count of the concept).
    """
    counts = np.bincount(concepts, minlength=len(keys))
    chance = config.limit / np.maximum(counts, config.limit)
    draw = mixed(config.seed, uids[images, 0], uids[images, 1], keys[concepts])
    # 53 bits fit a float64 exactly; chance 1 exceeds every draw.
    drawn = (draw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < chance[concepts]
    kept = np.zeros(len(uids), dtype=bool)
    kept[images[drawn]] = True
    if config.unmatched == "keep":
        kept |= np.bincount(images, minlength=len(uids)) == 0
    return kept
