"""Why an image could not be fetched: every failure has a class and a reason from a closed list."""

from __future__ import annotations

import re
from typing import Final, Literal

from pipeline.fetch.errors import reason_in

FailureClass = Literal["transient", "permanent", "policy"]

#: reason -> (class, what it means). Transient: a later try may succeed. Policy: we may not.
FAILURES: Final[dict[str, tuple[FailureClass, str]]] = {
    # found by the source, before anything is fetched
    "missing_url": ("permanent", "the row has no URL"),
    "bad_url": ("permanent", "no sound http(s) URL, or it holds controls, spaces or a password"),
    "bad_split": ("permanent", "the split is no short name of letters, digits, dots, - and _"),
    "bad_caption": ("permanent", "a caption cell holds neither text nor a list of texts"),
    "malformed_row": ("permanent", "the source line could not be parsed"),
    "missing_file": ("permanent", "the caption table names an image that the folder lacks"),
    "missing_image": ("permanent", "the sample in the tar has no image"),
    "duplicate_key": ("permanent", "an earlier sample of the tar has the same key"),
    "damaged_tar": ("permanent", "the tar is cut short or damaged here"),
    "bad_name": ("permanent", "the tar member's name is no plain relative path"),
    "oversized_member": ("permanent", "the tar member is larger than source.max_member_bytes"),
    # what the host says
    "not_found": ("permanent", "HTTP 404"),
    "gone": ("permanent", "HTTP 410"),
    "forbidden": ("permanent", "HTTP 401, 403 or 451"),
    "http_4xx": ("permanent", "another client error"),
    "rate_limited": ("transient", "HTTP 429"),
    "http_5xx": ("transient", "server error"),
    "bad_redirect": ("permanent", "a redirect that leads nowhere"),
    "too_many_redirects": ("permanent", "redirected in a loop, or over download.max_redirects"),
    "bad_response": ("permanent", "no sound HTTP, endless headers, or no whole body (204, 206)"),
    "bad_encoding": ("permanent", "the body is compressed in a way we don't read, or damaged"),
    "too_large": ("permanent", "the body is larger than download.max_bytes"),
    # what the image is
    "not_an_image": ("permanent", "the body does not decode as an image of a known format"),
    "truncated": ("permanent", "the image file ends before its end marker"),
    "too_many_pixels": ("permanent", "the header claims more than download.max_pixels"),
    "wrong_content": ("permanent", "the SHA-256 is not the one that the list gives"),
    # what we may not fetch
    "bad_scheme": ("policy", "not http or https, in the list or in a redirect"),
    "bad_port": ("policy", "a port of another service, which browsers refuse too"),
    "private_address": ("policy", "loopback, private, or otherwise no public address"),
    "outside_folder": ("policy", "a file outside the source's folder"),
    "forgotten": ("policy", "taken out by `python -m pipeline forget`"),
    "blocked_host": ("policy", "on filter.block.hosts"),
    "blocked_url": ("policy", "on filter.block.urls"),
    "opted_out": ("policy", "the X-Robots-Tag header disallows use"),
    "robots_disallowed": ("policy", "robots.txt disallows fetching"),
    "robots_unreachable": ("transient", "robots.txt could not be read, which is a no for now"),
    # the network
    "timeout": ("transient", "no answer in download.timeout"),
    "deadline": ("transient", "the whole transfer took longer than download.deadline_s"),
    "dns": ("transient", "the host name did not resolve"),
    "dns_temporary": ("transient", "the resolver failed or did not answer"),
    "connection": ("transient", "refused, or no route"),
    "reset": ("transient", "the connection was reset or closed early"),
    "tls": ("permanent", "no valid certificate, or no common TLS"),
    "host_down": ("transient", "skipped: the host did not answer many times in a row"),
    "host_busy": ("transient", "the host's own limits left no turn in download.host_wait_s"),
    "other": ("transient", "an error not on this list; its text is in raw/*.parquet"),
    "part_failed": ("transient", "the whole part failed; the next run tries it again"),
}

#: Reasons that a fetch has when nothing at all can be reached.
UNREACHED: Final = frozenset(
    {
        "timeout",
        "deadline",
        "dns",
        "dns_temporary",
        "connection",
        "reset",
        "tls",
        "host_down",
        "robots_unreachable",
    }
)

# For texts that are not our own: img2dataset's, OpenCV's, and urllib's in older tars. First match
# wins.
_PATTERNS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"X-Robots-Tag", "opted_out"),
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
        (r"reset|Remote end closed|IncompleteRead|broken pipe", "reset"),
        (r"Errno|SSL|refused", "connection"),
        (r"decod|image|reshape|empty|has no attribute 'shape'|cv2|OpenCV", "not_an_image"),
    )
)


def classify(message: str | None) -> str:
    """Return the reason (a key of `FAILURES`) for an error message as img2dataset records it."""
    text = message or ""
    own = reason_in(text)
    if own in FAILURES:
        return own
    for pattern, reason in _PATTERNS:
        if pattern.search(text):
            return reason
    return "other"
