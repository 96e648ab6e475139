"""Host names to addresses: cached, and never waited for longer than the deadline allows.

`getaddrinfo` cannot be interrupted, so it runs in a few daemon threads that callers stop waiting
for; names that are asked for at the same time are looked up once.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from pipeline.fetch.addresses import Address
from pipeline.fetch.bounded import BoundedTable
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.errors import FetchError

#: Looks a name up; raises OSError (`socket.gaierror`) or UnicodeError.
Lookup = Callable[[str], list[Address]]

#: As many lookups at once as img2dataset's default threads would do by themselves.
_THREADS: Final = 32
_CACHED_NAMES: Final = 65_536
_TEMPORARY: Final = {socket.EAI_AGAIN, socket.EAI_SYSTEM, socket.EAI_MEMORY}


@dataclass(frozen=True)
class _Answer:
    addresses: tuple[Address, ...]
    #: Reason of failure, if it failed.
    failure: str | None
    #: Until when, on the monotonic clock, it is used.
    until: float


def system_lookup(name: str) -> list[Address]:
    """Ask the system's resolver; the addresses come in the order it prefers (RFC 6724)."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


class Resolver:
    """Resolves names through `lookup`, remembering answers for `cache_s` seconds.

    Failures are remembered for a tenth of that. Temporary failures of the resolver itself are
    not: a retry asks again.
    """

    def __init__(self, cache_s: float, lookup: Lookup = system_lookup) -> None:
        self._cache_s = cache_s
        self._lookup = lookup
        self._lock = threading.Lock()
        self._known: BoundedTable[str, _Answer] = BoundedTable(_CACHED_NAMES)
        self._asked: dict[str, Future[_Answer]] = {}
        self._queue: SimpleQueue[tuple[str, Future[_Answer]]] = SimpleQueue()
        self._threads = 0

    def resolve(self, name: str, deadline: Deadline) -> tuple[Address, ...]:
        """Return a name's addresses.

        Raises `FetchError`: `dns` if it does not resolve, `dns_temporary` if the resolver failed or
        took too long, `deadline` if no time is left.
        """
        with self._lock:
            answer = self._known.get(name)
            future = None
            if answer is None or answer.until < time.monotonic():
                answer, future = None, self._ask(name)
        if future is not None:
            try:
                answer = future.result(deadline.wait())
            except NoAnswer:
                error = deadline.expired("DNS")
                if error.reason == "deadline":
                    raise error from None
                raise FetchError("dns_temporary", "no answer in time") from None
        assert answer is not None
        if answer.failure is not None:
            raise FetchError(answer.failure, "the resolver found no address")
        return answer.addresses

    def _ask(self, name: str) -> Future[_Answer]:
        """Return the lookup of a name, begun by now; the lock is held."""
        if name not in self._asked:
            future: Future[_Answer] = Future()
            self._asked[name] = future
            self._queue.put((name, future))
            if self._threads < _THREADS and len(self._asked) > self._threads:
                self._threads += 1
                threading.Thread(target=self._serve, name="dns", daemon=True).start()
        return self._asked[name]

    def _serve(self) -> None:
        while True:
            name, future = self._queue.get()
            answer, keep = self._answer(name)
            with self._lock:
                if keep:
                    self._known.put(name, answer)
                del self._asked[name]
            future.set_result(answer)

    def _answer(self, name: str) -> tuple[_Answer, bool]:
        """Return what the resolver says, and whether that is worth keeping."""
        try:
            addresses = tuple(dict.fromkeys(self._lookup(name)))
        except (OSError, UnicodeError, ValueError) as error:
            temporary = isinstance(error, socket.gaierror) and error.errno in _TEMPORARY
            reason = "dns_temporary" if temporary else "dns"
            return _Answer((), reason, time.monotonic() + self._cache_s / 10), not temporary
        return _Answer(addresses, None, time.monotonic() + self._cache_s), True
