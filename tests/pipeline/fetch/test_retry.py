"""What is tried again, how often, and after how long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.errors import FetchError
from pipeline.fetch.opener import PolicyOpener
from pipeline.fetch.retry import RETRIED, Retries, seconds_asked
from pipeline.stages.failures import FAILURES
from tests.pipeline.fetch.web import Behaviour, HostileWeb, answers, resets, stalls

Make = Callable[..., PolicyOpener]


@given(
    retries=st.integers(0, 6),
    backoff=st.floats(0, 100),
    budget=st.floats(0, 300),
    asked=st.lists(st.none() | st.floats(0, 1e12), min_size=8, max_size=8),
)
def test_waits_are_bounded_and_honour_the_host(
    retries: int, backoff: float, budget: float, asked: list[float | None]
) -> None:
    tries = Retries(retries, backoff, budget)
    waits = []
    for number, seconds in enumerate(asked):
        wait = tries.wait_after(FetchError("rate_limited", "", seconds))
        if wait is None:
            break
        assert wait >= (seconds or 0)
        assert wait <= max(min(backoff * 2**number, 30), seconds or 0)
        waits.append(wait)
    assert len(waits) <= retries
    assert sum(waits) <= budget + 1e-6


@pytest.mark.parametrize("reason", sorted(FAILURES))
def test_only_what_may_pass_soon_is_tried_again(reason: str) -> None:
    wait = Retries(1, 0, 10).wait_after(FetchError(reason, ""))
    expected = {"timeout", "reset", "rate_limited", "http_5xx", "dns_temporary"}
    assert (wait is not None) == (reason in expected)
    assert expected == RETRIED


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("9" * 500, 999_999_999_999_999_999.0),
        ("-5", None),
        ("soon", None),
        ("٣", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 99 Dec 9999 99:99:99 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_asked(header) == seconds


def test_retry_after_as_a_date() -> None:
    seconds = seconds_asked(formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None and 95 < seconds <= 101


LONG = {"30 years": "1000000000", "till 2999": "Tue, 01 Jan 2999 00:00:00 GMT"}
TRIES: dict[str, tuple[Behaviour, str, int]] = {
    "503": (answers(b"", status="503 Busy"), "http_5xx", 3),
    "429": (answers(b"", status="429 Slow down"), "rate_limited", 3),
    "reset": (resets(b""), "reset", 3),
    "silence": (stalls(b""), "timeout", 3),
    "404": (answers(b"", status="404 None"), "not_found", 1),
    "400": (answers(b"", status="400 Bad"), "http_4xx", 1),
    "too large": (answers(bytes(300_000)), "too_large", 1),
    **{
        f"wait {name}": (answers(b"", f"Retry-After: {after}", status="503 X"), "http_5xx", 1)
        for name, after in LONG.items()
    },
}


@pytest.mark.parametrize("name", TRIES)
def test_tries(name: str, hostile: HostileWeb, opener: Make) -> None:
    behaviour, reason, requests = TRIES[name]
    url = hostile.serve("/", behaviour)
    with pytest.raises(FetchError, match=f"fetch:{reason}:"):
        opener(retries=2, timeout=0.2).open(url)
    assert hostile.asked("/") == requests


def test_a_host_that_recovers(hostile: HostileWeb, opener: Make) -> None:
    busy, fine = answers(b"", "Retry-After: 1", status="503 Busy"), answers(b"image")

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        (busy if hostile.asked("/") == 1 else fine)(connection, stop)

    url = hostile.serve("/", behave)
    began = time.monotonic()
    assert opener(retries=1).open(url).read() == b"image"
    assert time.monotonic() - began >= 1  # as it asked


def test_the_deadline_is_not_tried_again(hostile: HostileWeb, opener: Make) -> None:
    url = hostile.serve("/", stalls(b""))
    with pytest.raises(FetchError, match="deadline"):
        opener(retries=5, timeout=9, deadline_s=0.3).open(url)
    assert hostile.asked("/") == 1
