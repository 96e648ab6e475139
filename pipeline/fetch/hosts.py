"""Turns per host: how many at once, how often, and not at all while it is down."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pipeline.fetch.bounded import BoundedTable
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError

Origin = tuple[str, int]

_HOSTS: Final = 65_536


@dataclass
class _Host:
    active: int = 0
    waiting: int = 0
    #: When the next request may start: the rate's spacing, or the host's Retry-After.
    next_start: float = 0.0
    last_answer: float = 0.0
    #: URLs without an answer, all begun since the last answer.
    unanswered: int = 0
    down_until: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether nobody is at this host or waits for it."""
        return self.active == 0 and self.waiting == 0


class Hosts:
    """What this process does at every host; safe for threads.

    A host is skipped (`host_down`) once `host_failures` URLs in a row, each begun after its last
    answer, got none. That is more than can be in flight together, so a few images that hang at the
    end of a part don't close a host that is well. An answer is any status line.
    """

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: BoundedTable[Origin, _Host] = BoundedTable(_HOSTS, lambda host: host.idle)
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, origin: Origin, waited: float = 0.0) -> Iterator[float]:
        """Hold one of a host's places; yields how long that had to be waited for [s].

        `waited` is what the same try has waited for other turns.

        Raises `FetchError`: `host_down`, or `host_busy` if `host_wait_s` was not enough.
        """
        began = time.monotonic()
        with self._changed:
            host = self._of(origin)
            self._enter(host, began + self._config.host_wait_s - waited)
            start = max(host.next_start, time.monotonic())
            if self._config.host_rate is not None:
                host.next_start = start + 1 / self._config.host_rate
        try:
            pause = start - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            yield time.monotonic() - began
        finally:
            with self._changed:
                host.active -= 1
                if host.waiting:
                    self._changed.notify_all()

    def answered(self, origin: Origin) -> None:
        """Note that the host sent an answer, whatever it says."""
        with self._changed:
            host = self._of(origin)
            host.last_answer = time.monotonic()
            host.unanswered = 0
            host.down_until = 0.0

    def unanswered(self, origin: Origin, began: float) -> None:
        """Note that a URL whose first try began at `began` (monotonic) got no answer."""
        with self._changed:
            host = self._of(origin)
            if self._config.host_failures == 0 or began < host.last_answer:
                return
            host.unanswered += 1
            if host.unanswered >= max(self._config.host_failures, self._config.threads + 1):
                host.down_until = time.monotonic() + self._config.host_down_s

    def pause(self, origin: Origin, seconds: float) -> None:
        """Start nothing at the host for a while, as it asked."""
        with self._changed:
            host = self._of(origin)
            host.next_start = max(host.next_start, time.monotonic() + seconds)

    def _of(self, origin: Origin) -> _Host:
        host = self._hosts.get(origin)
        if host is None:
            host = _Host()
            self._hosts.put(origin, host)
        return host

    def _enter(self, host: _Host, latest: float) -> None:
        """Take a place, waiting for one to become free; the lock is held."""
        self._check_up(host)
        host.waiting += 1
        try:
            while host.active >= self._config.host_concurrency:
                if not self._changed.wait(max(0.0, latest - time.monotonic())):
                    raise FetchError("host_busy", "no place at the host became free in time")
                self._check_up(host)
        finally:
            host.waiting -= 1
        if host.next_start > latest:
            raise FetchError("host_busy", "the host's rate leaves no turn in time")
        host.active += 1

    def _check_up(self, host: _Host) -> None:
        now = time.monotonic()
        if host.down_until > now:
            raise FetchError("host_down", "the host did not answer many times in a row")
        if host.down_until:
            # One URL finds out whether it is back; the others go on skipping it meanwhile.
            host.down_until = now + self._config.host_down_s
