"""Why an image could not be fetched: every failure has a class and a reason from a closed list."""

from __future__ import annotations

import re
from typing import Final, Literal

FailureClass = Literal["transient", "permanent", "policy"]

#: reason -> (class, what it means). Transient: a later try may succeed. Policy: we may not.
FAILURES: Final[dict[str, tuple[FailureClass, str]]] = {
    "missing_url": ("permanent", "the row has no URL"),
    "bad_url": ("permanent", "the URL is not http(s) with a host, or holds control characters"),
    "bad_split": ("permanent", "the split is no short name of letters, digits, dots, - and _"),
    "malformed_row": ("permanent", "the source line could not be parsed"),
    "missing_file": ("permanent", "the caption table names an image that the folder lacks"),
    "not_found": ("permanent", "HTTP 404"),
    "gone": ("permanent", "HTTP 410"),
    "forbidden": ("permanent", "HTTP 401, 403 or 451"),
    "http_4xx": ("permanent", "another client error"),
    "bad_redirect": ("permanent", "redirected in a loop, or to what cannot be fetched"),
    "not_an_image": ("permanent", "the body does not decode as an image"),
    "truncated": ("permanent", "the image file ends before its end marker"),
    "opted_out": ("policy", "the X-Robots-Tag header disallows use"),
    "rate_limited": ("transient", "HTTP 429"),
    "http_5xx": ("transient", "server error"),
    "timeout": ("transient", "no answer in time"),
    "dns": ("transient", "the host name did not resolve"),
    "connection": ("transient", "refused, reset, closed early, or not secure (TLS)"),
    "other": ("transient", "an error not on this list; its text is in raw/*.parquet"),
    "part_failed": ("transient", "the whole part failed; the next run tries it again"),
}

# First match wins; the texts are urllib's and OpenCV's, as img2dataset records them.
_PATTERNS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"X-Robots-Tag", "opted_out"),
        (r"^truncated image", "truncated"),
        (r"HTTP Error 404", "not_found"),
        (r"HTTP Error 410", "gone"),
        (r"HTTP Error (401|403|451)", "forbidden"),
        (r"HTTP Error 429", "rate_limited"),
        (r"HTTP Error 3\d\d|redirect", "bad_redirect"),
        (r"HTTP Error 4\d\d", "http_4xx"),
        (r"HTTP Error 5\d\d", "http_5xx"),
        (r"timed out|timeout", "timeout"),
        (r"Name or service not known|getaddrinfo|name resolution|nodename nor servname", "dns"),
        (r"Errno 2\]|No such file", "missing_file"),
        (r"unknown url type|no host given|nonnumeric port", "bad_url"),
        (r"control characters|codec (can't|failed)", "bad_url"),
        (r"Errno|SSL|refused|reset|Remote end closed|IncompleteRead|broken pipe", "connection"),
        (r"decod|image|reshape|empty|has no attribute 'shape'|cv2|OpenCV", "not_an_image"),
    )
)


def classify(message: str | None) -> str:
    """Return the reason (a key of `FAILURES`) for an error message as img2dataset records it."""
    for pattern, reason in _PATTERNS:
        if pattern.search(message or ""):
            return reason
    return "other"
