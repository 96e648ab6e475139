"""Random numbers as pure functions of a key: no state, no order, the same on every machine.

numpy promises that a bit generator's raw stream never changes, and promises no such thing for the
methods of `numpy.random.Generator` (NEP 19). A plan that must survive a numpy upgrade in the middle
of a run is therefore built from raw Philox words and a stable argsort, never from
`Generator.permutation`.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bits: TypeAlias = NDArray[np.uint64]

_SEPARATOR: Final = b"\x1f"
_TO_UNIT: Final = 2.0**-53
_WORD: Final = 2**64 - 1
#: Words of a blake2b digest.
_HASHED: Final = 8
_WORDS: Final = struct.Struct(f"<{_HASHED}Q")


class _Local(threading.local):
    """A thread's generator, and the state of a new one with a key to fill in."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)
        self.state: Any = self.generator.state


_LOCAL: Final = _Local()


def key(*parts: int | str) -> int:
    """Return a 128-bit key of the parts; a part's type counts, so `1` and `"1"` differ."""
    text = _SEPARATOR.join(
        [b"i%d" % part if isinstance(part, int) else b"s" + part.encode() for part in parts]
    )
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def bits(philox_key: int, count: int) -> Bits:
    """Return `count` uniform 64-bit words (count,) uint64."""
    local = _LOCAL
    local.state["state"]["key"][:] = philox_key & _WORD, philox_key >> 64
    local.generator.state = local.state  # a new generator would take six times as long
    return np.asarray(local.generator.random_raw(count), dtype=np.uint64)


def uniform(philox_key: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), (count,) float64, with 53 random bits each."""
    return (bits(philox_key, count) >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def draws(own_key: int, count: int) -> list[float]:
    """Return `count` numbers in [0, 1) as a list, not those of `uniform`; more draws extend fewer.

    For a handful per sample: they are words of hashes of (key, block), which takes a third of the
    time of setting a Philox generator to a key.
    """
    found: list[float] = []
    for block in range(-(-count // _HASHED)):
        data = own_key.to_bytes(16, "little") + block.to_bytes(8, "little")
        words = _WORDS.unpack(hashlib.blake2b(data).digest())
        found += [(word >> 11) * _TO_UNIT for word in words[: count - len(found)]]
    return found


def permutation(philox_key: int, count: int) -> NDArray[np.int64]:
    """Return a permutation of `range(count)`, (count,) int64.

    Two equal words (chance below 1e-7 at a million) keep their order, so the result stays defined.
    """
    return np.argsort(bits(philox_key, count), kind="stable")


def mix(values: Bits, salt: int) -> Bits:
    """Return one uniform word per value, a function of (value, salt): splitmix64's finaliser.

    For arrays of already well-spread values (uids are hash digits), where one Philox generator per
    element would cost microseconds each.
    """
    with np.errstate(over="ignore"):
        word = values + np.uint64(salt & 0xFFFFFFFFFFFFFFFF)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(word ^ (word >> np.uint64(31)), dtype=np.uint64)
