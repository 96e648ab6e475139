"""Which failures are worth another try, and how long to wait before it."""

from __future__ import annotations

import email.utils
import random
import time
from typing import Final

from pipeline.fetch.errors import FetchError

#: A whole transfer over its deadline is not among them: a slow drip would drip again.
RETRIED: Final = frozenset({"timeout", "reset", "rate_limited", "http_5xx", "dns_temporary"})
_LONGEST_BACKOFF_S: Final = 30.0


class Retries:
    """The tries of one URL: at most `retries` further ones, waiting at most `budget_s` in all."""

    def __init__(self, retries: int, backoff_s: float, budget_s: float) -> None:
        self._left = retries
        self._bound = backoff_s
        self._budget = budget_s

    def wait_after(self, error: FetchError) -> float | None:
        """Return how long to wait before the next try [s], or None if there is none.

        The wait is drawn evenly from 0 to a bound that doubles ("full jitter"), and no shorter
        than the server's Retry-After; one that the budget does not hold ends the tries.
        """
        if error.reason not in RETRIED or self._left == 0:
            return None
        wait = random.uniform(0, min(self._bound, _LONGEST_BACKOFF_S))
        wait = max(wait, error.retry_after or 0.0)
        if wait > self._budget:
            return None
        self._left -= 1
        self._bound *= 2
        self._budget -= wait
        return wait


def seconds_asked(header: str | None) -> float | None:
    """Return a Retry-After header (seconds or an HTTP date, RFC 9110, 10.2.3) as seconds from now.

    None if there is none or it is neither.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isdecimal() and text.isascii():
        return float(text[:18])
    try:
        moment = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, moment - time.time())
