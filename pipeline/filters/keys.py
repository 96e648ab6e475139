"""Names as numbers: uids as 128 bits, and random numbers that depend on names alone."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import UID_LENGTH

Words = npt.NDArray[np.uint64]

_NIBBLES: Final = np.full(256, 255, dtype=np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def uid_words(uids: pa.Array | pa.ChunkedArray) -> Words:
    """Return uids (n,) as (n, 2) uint64, high word first, which sort as the texts do.

    Raises `ValueError` for what is no uid: `UID_LENGTH` lower-case hex digits.
    """
    if isinstance(uids, pa.ChunkedArray):
        parts = [uid_words(chunk) for chunk in uids.chunks]
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint64)
    flat = uids.cast(pa.binary(UID_LENGTH)) if len(uids) else None
    if flat is None:
        return np.zeros((0, 2), np.uint64)
    start = flat.offset * UID_LENGTH
    data = np.frombuffer(flat.buffers()[1], np.uint8)[start : start + len(flat) * UID_LENGTH]
    digits = _NIBBLES[data]
    if flat.null_count or digits.max(initial=0) > 15:
        raise ValueError(f"a uid is not {UID_LENGTH} lower-case hex digits")
    packed = (digits[0::2] << 4) | digits[1::2]
    return packed.reshape(-1, 16).view(">u8").astype(np.uint64)


def uid_texts(words: Words) -> pa.Array:
    """Return the uids (n,) of string whose numbers (n, 2) `uid_words` returned."""
    digits = np.ascontiguousarray(words.astype(">u8")).view(np.uint8).reshape(-1, UID_LENGTH // 2)
    pairs = np.stack([digits >> 4, digits & 15], axis=2).reshape(-1)
    data = np.frombuffer(b"0123456789abcdef", np.uint8)[pairs]
    offsets = np.arange(len(words) + 1, dtype=np.int64) * UID_LENGTH
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(words), buffers).cast(pa.string())


def mixed(*parts: Words | int) -> Words:
    """Return 64 well-mixed bits of some words, which are broadcast against one another.

    SplitMix64's finalizer (Steele et al. 2014) after each word: a change of one bit in any word
    changes half of the bits.
    """
    state = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            word = np.asarray(part, dtype=np.uint64)
            value = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = value ^ (value >> np.uint64(31))
    return state
