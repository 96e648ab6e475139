"""A hostile web on loopback, a canary that must stay silent, and openers that may reach the web."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.opener import PolicyOpener
from tests.pipeline.fetch.attacks import MAX_BYTES
from tests.pipeline.fetch.web import HostileWeb


@pytest.fixture
def hostile() -> Iterator[HostileWeb]:
    with HostileWeb() as web:
        yield web


@pytest.fixture
def canary() -> Iterator[int]:
    """The port of a private service, on IPv4 and IPv6 loopback, that must not be contacted."""
    with HostileWeb() as four, HostileWeb(socket.AF_INET6, four.port) as six:
        yield four.port
        assert (four.connections, six.connections) == (0, 0), "a private address was contacted"


@pytest.fixture
def opener(hostile: HostileWeb) -> Callable[..., PolicyOpener]:
    """Return a function that makes an impatient opener; it may reach the hostile web only."""

    def make(
        blocklist: Blocklist | None = None, lookup: Any = None, dial_to: Any = None, **options: Any
    ) -> PolicyOpener:
        quick = {
            "timeout": 0.5,
            "deadline_s": 1,
            "retries": 0,
            "backoff_s": 0,
            "max_bytes": MAX_BYTES,
            "allow_private_hosts": [f"127.0.0.1:{hostile.port}"],
        }
        seams = {"lookup": lookup, "dial_to": dial_to}
        given = {name: seam for name, seam in seams.items() if seam is not None}
        return PolicyOpener(FetchConfig(**{**quick, **options}), blocklist, **given)

    return make
