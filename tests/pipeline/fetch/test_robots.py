"""robots.txt: asked for once per host, obeyed, and no more harmful than any other page."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.fetch.errors import FetchError
from pipeline.fetch.opener import PolicyOpener
from tests.pipeline.fetch.web import (
    Behaviour,
    HostileWeb,
    answers,
    drips,
    endless,
    head,
    says,
    stalls,
)

Make = Callable[..., PolicyOpener]
RULES = b"User-agent: *\nDisallow: /no/\n\nUser-agent: tcjepa\nDisallow: /ours/\n"


@pytest.fixture
def pages(hostile: HostileWeb) -> HostileWeb:
    for path in ("/yes.jpg", "/no/a.jpg", "/ours/a.jpg"):
        hostile.serve(path, answers(b"image"))
    return hostile


def fate(opener: PolicyOpener, url: str) -> str | None:
    try:
        assert opener.open(url).read() == b"image"
    except FetchError as error:
        return error.reason
    return None


def test_it_is_not_asked_for_unless_so_configured(pages: HostileWeb, opener: Make) -> None:
    pages.serve("/robots.txt", answers(RULES))
    assert fate(opener(), pages.base + "/no/a.jpg") is None
    assert pages.asked("/robots.txt") == 0


@pytest.mark.parametrize(
    ("token", "forbidden"), [("tcjepa", "/ours/a.jpg"), ("other", "/no/a.jpg"), (None, "/no/a.jpg")]
)
def test_rules_are_those_for_our_name(
    token: str | None, forbidden: str, pages: HostileWeb, opener: Make
) -> None:
    pages.serve("/robots.txt", answers(RULES))
    fetch = opener(respect_robots_txt=True, user_agent_token=token)
    for path in ("/yes.jpg", "/no/a.jpg", "/ours/a.jpg"):
        expected = "robots_disallowed" if path == forbidden else None
        assert fate(fetch, pages.base + path) == expected
    assert pages.asked("/robots.txt") == 1
    assert pages.asked(forbidden) == 0


def test_many_who_ask_at_once_share_it(pages: HostileWeb, opener: Make) -> None:
    pages.serve("/robots.txt", answers(RULES))
    fetch = opener(respect_robots_txt=True)
    with ThreadPoolExecutor(8) as pool:
        fates = list(pool.map(lambda _: fate(fetch, pages.base + "/yes.jpg"), range(16)))
    assert fates == [None] * 16
    assert pages.asked("/robots.txt") == 1


def test_a_redirect_is_asked_about_too(pages: HostileWeb, opener: Make) -> None:
    pages.serve("/robots.txt", answers(RULES))
    pages.serve("/moved", says(head("Location: /ours/a.jpg", status="302 Found")))
    fetch = opener(respect_robots_txt=True)
    assert fate(fetch, pages.base + "/moved") == "robots_disallowed"


HOSTS: dict[str, tuple[Behaviour, str | None]] = {
    "404": (answers(b"", status="404 None"), None),
    "403": (answers(b"", status="403 No"), None),
    "503": (answers(b"", status="503 Busy"), "robots_unreachable"),
    "silence": (stalls(b""), "robots_unreachable"),
    "drip": (drips(head("Content-Length: 9999"), b"x"), "robots_unreachable"),
    "gigabyte": (endless(head("Content-Length: 1000000000"), b"# x\n" * 9999), None),
    "gigabyte that forbids": (
        endless(head() + b"User-agent: *\nDisallow: /yes\n", b"# x\n" * 9999),
        "robots_disallowed",
    ),
    "binary": (answers(bytes(range(256)) * 100), None),
    "redirect": (says(head("Location: /rules", status="301 Moved")), "robots_disallowed"),
    "redirect loop": (says(head("Location: /robots.txt", status="301 Moved")), None),
    "redirect inside": (
        says(head("Location: http://10.0.0.1/robots.txt", status="301 Moved")),
        "robots_unreachable",
    ),
}


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_whose_robots_txt_is(name: str, pages: HostileWeb, canary: int, opener: Make) -> None:
    behaviour, reason = HOSTS[name]
    pages.serve("/robots.txt", behaviour)
    pages.serve("/rules", answers(b"User-agent: *\nDisallow: /"))
    # Only what waits for its deadline may run into it; a busy machine is slow, not wrong.
    deadline = 1 if name in {"silence", "drip"} else 30
    fetch = opener(respect_robots_txt=True, deadline_s=deadline)
    began = time.monotonic()
    first = fate(fetch, pages.base + "/yes.jpg")
    assert time.monotonic() - began <= deadline + 2
    # The first one may have spent its own deadline on waiting.
    assert first == reason or (name == "drip" and first == "deadline")
    assert fate(fetch, pages.base + "/yes.jpg") == reason


def test_a_failure_while_reading_it_leaves_nobody_waiting(pages: HostileWeb, opener: Make) -> None:
    pages.serve("/robots.txt", stalls(b""))
    fetch = opener(respect_robots_txt=True, timeout=0.3, deadline_s=1)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        fates = list(pool.map(lambda _: fate(fetch, pages.base + "/yes.jpg"), range(8)))
    assert set(fates) <= {"robots_unreachable", "timeout"}
    assert time.monotonic() - began <= 1 + 2
