"""The one exception of this room; its text carries the reason through img2dataset's records."""

from __future__ import annotations

import re
from typing import Final

_PREFIX: Final = re.compile(r"fetch:([a-z0-9_]+):")


class FetchError(Exception):
    """A fetch that failed or was refused, for a reason from `pipeline.stages.failures.FAILURES`.

    img2dataset keeps only an error's text, so that begins with `fetch:<reason>:`. The detail never
    holds the URL, which may carry a password and would make every message one of its kind.
    """

    def __init__(self, reason: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"fetch:{reason}: {detail}")
        self.reason = reason
        #: Seconds that the server asked us to wait, if it did.
        self.retry_after = retry_after


def reason_in(message: str) -> str | None:
    """Return the reason in the text of a `FetchError`, or None for any other text."""
    found = _PREFIX.match(message)
    return found.group(1) if found else None
