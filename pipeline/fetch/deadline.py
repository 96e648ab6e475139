"""The time that one try of a URL may take, all its socket operations together."""

from __future__ import annotations

import time

from pipeline.fetch.errors import FetchError


class Deadline:
    """A moment by which a try must have ended, and the longest single wait until then."""

    def __init__(self, seconds: float, timeout: float) -> None:
        self.began = time.monotonic()
        self._timeout = timeout
        #: Time spent waiting for our own limits.
        self.waited = 0.0
        self._seconds = seconds
        self._end = self.began + seconds

    @property
    def ample(self) -> bool:
        """Whether enough is left that a silence from now on says something of who is silent."""
        left = self._end - time.monotonic()
        return left >= min(self._timeout, self._seconds / 2)

    def wait(self) -> float:
        """Return how long the next operation may block [s].

        Raises `FetchError` `deadline` when no time is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise FetchError("deadline", "the whole transfer took too long")
        return min(left, self._timeout)

    def expired(self, doing: str) -> FetchError:
        """Return the error for an operation that blocked as long as `wait` allowed."""
        if time.monotonic() >= self._end:
            return FetchError("deadline", f"the whole transfer took too long ({doing})")
        return FetchError("timeout", f"timed out ({doing})")

    def extend(self, seconds: float) -> None:
        """Put the end off, by time that was spent waiting for our own limits."""
        self.waited += seconds
        self._end += seconds
