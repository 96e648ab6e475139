"""robots.txt (RFC 9309): fetched once per host through the same policy, and obeyed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, replace
from typing import Final

from pipeline.fetch.bounded import BoundedTable
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.errors import FetchError
from pipeline.fetch.robots_rules import allows, parse_rules
from pipeline.fetch.targets import Target

#: How much of a robots.txt is read; the RFC asks for at least this much.
MAX_ROBOTS: Final = 512_000
_KEPT_S: Final = 86_400.0
_FAILURE_KEPT_S: Final = 300.0
_HOSTS: Final = 8192
# The RFC's "unavailable": such a host has no rules. Anything else forbids everything for now.
_NO_RULES: Final = {"not_found", "gone", "forbidden", "http_4xx", "bad_redirect"}

#: Reads the robots.txt at a target, cut at `MAX_ROBOTS`; raises `FetchError`.
Read = Callable[[Target, Deadline], bytes]


@dataclass(frozen=True)
class _Rules:
    #: None: it could not be read, so nothing may be fetched for now.
    text: str | None
    until: float


class Robots:
    """The rules of every host met, for one user agent; safe for threads."""

    def __init__(self, agent: str | None, read: Read) -> None:
        self._agent = agent
        self._read = read
        self._lock = threading.Lock()
        self._rules: BoundedTable[str, Future[_Rules]] = BoundedTable(_HOSTS, Future.done)

    def check(self, target: Target, deadline: Deadline) -> None:
        """Raise `FetchError` unless the host's robots.txt lets us fetch the target.

        Reasons: `robots_disallowed`; `robots_unreachable`, when it can't be read and a server
        error or silence must count as a no for now.
        """
        key = f"{target.scheme}://{target.authority}"
        with self._lock:
            known = self._rules.get(key)
            mine = known is None or (known.done() and known.result().until < time.monotonic())
            if mine:
                known = Future()
                self._rules.put(key, known)
        assert known is not None
        if mine:
            known.set_result(self._fetch(target, deadline))
        try:
            rules = known.result(deadline.wait())
        except NoAnswer:
            raise deadline.expired("robots.txt") from None
        if rules.text is None:
            raise FetchError("robots_unreachable", "robots.txt could not be read")
        if not allows(rules.text, target.path):
            raise FetchError("robots_disallowed", "robots.txt forbids it")

    def _fetch(self, target: Target, deadline: Deadline) -> _Rules:
        where = replace(target, path="/robots.txt")
        try:
            text = parse_rules(self._read(where, deadline), self._agent)
        except FetchError as error:
            if error.reason not in _NO_RULES:
                return _Rules(None, time.monotonic() + _FAILURE_KEPT_S)
            text = ""
        except BaseException:  # others wait for this future
            return _Rules(None, 0.0)
        return _Rules(text, time.monotonic() + _KEPT_S)
