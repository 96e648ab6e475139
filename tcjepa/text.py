"""Frozen text encoders: captions of a batch in, word embeddings out, equal captions encoded once.

`hashed` needs no weights: each word is a fixed pseudo-random vector. Anything else is a Hugging
Face name or folder, see `tcjepa.text_huggingface`. Text encoders are never trained and are no part
of a checkpoint.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pipeline.settings import Settings
from tcjepa import keyed


class TextConfig(Settings):
    """Which text encoder turns captions into words (config section `text`)."""

    encoder: str = Field(
        "hashed",
        description="`hashed` (no weights), or a Hugging Face name or local folder of a text "
        "encoder; paper: T5, e.g. t5-base",
    )
    max_words: int = Field(
        64, ge=1, description="words (tokens) kept of a caption; open in the paper [words]"
    )
    width: int = Field(256, ge=2, description="word vectors of `hashed` [features]")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Hugging Face encoder's weights; auto: bfloat16 on a GPU, else float32"
    )
    cache: int = Field(
        16384,
        ge=0,
        description="captions whose embeddings stay in memory, on the encoder's device; about "
        "30 KB each for t5-base in bfloat16 at 20 words; on a CPU they are encoded one by one, so "
        "that a resumed run repeats its losses [captions]",
    )


@dataclass(frozen=True)
class TextBatch:
    """Captions of a batch as word embeddings; equal captions are stored once."""

    words: Tensor  # (U, S, F) word embeddings
    valid: Tensor  # (U, S) bool, True at words, False at padding
    caption: Tensor  # (B, N) int64 into U; -1 where the image has fewer captions


class TextEncoder(Protocol):
    """A frozen text encoder."""

    width: int  # F

    def encode(self, captions: Sequence[Sequence[str]], device: torch.device) -> TextBatch:
        """Return the words of B lists of captions; N and S are the batch's longest."""
        ...

    def spans_of(self, caption: str) -> list[tuple[int, int]]:
        """Return the characters [start, end) of the caption that each of its words stands for."""
        ...

    def count_words(self, captions: Sequence[str]) -> list[int]:
        """Return how many words `encode` would give each caption, without encoding it."""
        ...


def open_text_encoder(config: TextConfig) -> TextEncoder:
    """Return the configured encoder; raises `ConfigError` if it cannot be loaded."""
    if config.encoder == "hashed":
        return HashedEncoder(config)
    from tcjepa.text_huggingface import HuggingFaceEncoder

    return HuggingFaceEncoder.load(config)


def swap_captions(text: TextBatch) -> TextBatch:
    """Return the batch with captions moved on by one among the images that have any.

    With at least two such images none keeps its own list; images without captions stay without.
    The prediction loss on the result minus that on `text` is the text gain.
    """
    captioned = (text.caption >= 0).any(1).nonzero()[:, 0]
    caption = text.caption.clone()
    caption[captioned] = text.caption[captioned.roll(1)]
    return TextBatch(text.words, text.valid, caption)


def pad_shapes(text: TextBatch, most_captions: int) -> TextBatch:
    """Return the batch padded to one of few shapes, so that a compiled model meets few of them.

    S becomes a multiple of 8, N a power of two or `most_captions`, and U a multiple of an eighth
    of B * N, at least of 64. Added words are not valid, added captions absent, added rows unused.
    """
    U, S, _ = text.words.shape
    B, N = text.caption.shape
    captions = min(1 << (N - 1).bit_length(), max(N, most_captions))
    step = max(64, -(-B * captions // 8))
    more_words, more_rows = -S % 8, -U % step if U else step
    return TextBatch(
        functional.pad(text.words, (0, 0, 0, more_words, 0, more_rows)),
        functional.pad(text.valid, (0, more_words, 0, more_rows), value=False),
        functional.pad(text.caption, (0, captions - N), value=-1),
    )


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; to a GPU without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def distinct(captions: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.int64]]:
    """Return distinct captions in order of appearance and (B, N) indices into them, -1 if absent.

    N is the longest list's length, at least 1.
    """
    numbers: dict[str, int] = {}
    index = np.full((len(captions), max([1, *map(len, captions)])), -1, dtype=np.int64)
    for row, own in enumerate(captions):
        for column, caption in enumerate(own):
            index[row, column] = numbers.setdefault(caption, len(numbers))
    return list(numbers), index


class HashedEncoder:
    """Weight-free words: a fixed pseudo-random vector per word, plus its sinusoidal position.

    Word vectors are uniform with mean 0 and variance 1 per feature, a pure function of the
    case-folded word, so that different words are nearly orthogonal and equal on every machine.
    Positions weigh half as much. There is no context: "red" is the same vector in every caption.
    """

    #: Word vectors kept; past it the table starts again [words]
    vocabulary = 65536

    def __init__(self, config: TextConfig) -> None:
        self.width = config.width
        self._max_words = config.max_words
        self._positions = 0.5 * _sinusoids(config.max_words, config.width)
        self._numbers: dict[str, int] = {}
        # Zeros: padding reads the first row, even before there is a word, and NaN · 0 is NaN.
        self._vectors = np.zeros((1024, config.width), dtype=np.float32)
        self._captions: Recent[list[str]] = Recent(config.cache)

    def encode(self, captions: Sequence[Sequence[str]], device: torch.device) -> TextBatch:
        """Return float32 words of B lists of captions; see `TextEncoder`."""
        texts, caption = distinct(captions)
        if len(self._numbers) > self.vocabulary:
            self._numbers.clear()
        words = [self._split(text) for text in texts]
        S = max([1, *map(len, words)])
        number = np.zeros((len(words), S), dtype=np.int64)
        valid = np.zeros((len(words), S), dtype=bool)
        for row, own in enumerate(words):
            number[row, : len(own)] = [self._number(word) for word in own]
            valid[row, : len(own)] = True
        vectors = (self._vectors[number] + self._positions[:S]) * valid[:, :, None]
        parts = (to_device(part, device) for part in (vectors, valid, caption))
        return TextBatch(*parts)

    def spans_of(self, caption: str) -> list[tuple[int, int]]:
        """Return the characters of each word; see `TextEncoder`."""
        return [match.span() for match in _WORD.finditer(caption)][: self._max_words]

    def count_words(self, captions: Sequence[str]) -> list[int]:
        """Return the number of words of each caption; see `TextEncoder`."""
        return [len(self._split(caption)) for caption in captions]

    def _split(self, text: str) -> list[str]:
        words = self._captions.get(text)
        if words is None:
            words = split_words(text)[: self._max_words]
            self._captions.put(text, words)
        return words

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            number = self._numbers[word] = len(self._numbers)
            if number == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
            one = unicodedata.normalize("NFC", word)  # é is one letter, or e and an accent
            unit = keyed.uniform(keyed.key("word", one), self.width)
            self._vectors[number] = (2 * unit - 1) * math.sqrt(3)
        return number


_WORD = re.compile(
    # Scripts written without spaces: each sign is a word. Elsewhere: letters, marks and digits.
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_]+(?:['’\u0300-\u036f\u0900-\u0dff]+[^\W_]*)*"
)


def split_words(text: str) -> list[str]:
    """Return a caption's case-folded words; punctuation is dropped, CJK and Thai split by sign."""
    return _WORD.findall(text.casefold())


K = TypeVar("K")


class Recent(Generic[K]):
    """The most recently used values by caption, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, K] = OrderedDict()

    def get(self, text: str) -> K | None:
        """Return a caption's value and mark it used, or None."""
        value = self._values.get(text)
        if value is not None:
            self._values.move_to_end(text)
        return value

    def put(self, text: str, value: K) -> None:
        """Keep a value, dropping the least recently used one past the size."""
        self._values[text] = value
        self._values.move_to_end(text)
        if len(self._values) > self._size:
            self._values.popitem(last=False)


def _sinusoids(length: int, width: int) -> NDArray[np.float32]:
    """Return sine-cosine positions (length, width) (Vaswani et al. 2017)."""
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(length)[:, None] * rate
    return np.where(np.arange(width) % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


__all__ = [
    "HashedEncoder",
    "TextBatch",
    "TextConfig",
    "TextEncoder",
    "distinct",
    "open_text_encoder",
    "pad_shapes",
    "split_words",
    "swap_captions",
    "to_device",
]
