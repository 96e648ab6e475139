"""A table that forgets its least recently used entries, so that a million hosts stay cheap."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedTable(Generic[K, V]):
    """At most `size` entries; not thread-safe, its owner holds a lock."""

    def __init__(self, size: int, may_forget: Callable[[V], bool] = lambda _: True) -> None:
        self._size = size
        self._may_forget = may_forget
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return an entry, which becomes the most recently used, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: K, value: V) -> None:
        """Keep an entry; the oldest ones that may be forgotten make room for it."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            # Those in use are few (one per thread) and are passed over.
            oldest = (k for k, v in self._entries.items() if k != key and self._may_forget(v))
            victim = next(oldest, None)
            if victim is not None:
                del self._entries[victim]
