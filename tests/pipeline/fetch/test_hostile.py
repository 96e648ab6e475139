"""Every attack ends with its reason, within its time, and reaches nothing private.

Their memory is watched in `test_hostile_part`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetch import exchange
from pipeline.fetch.addresses import Address
from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.errors import FetchError
from pipeline.fetch.opener import PolicyOpener
from tests.pipeline.fetch.attacks import ATTACKS, MAX_BYTES
from tests.pipeline.fetch.web import HostileWeb, answers, drips, head, says, stalls

DEADLINE = 1.0
Make = Callable[..., PolicyOpener]
PUBLIC = ip_address("93.184.216.34")


def fate(opener: PolicyOpener, url: str) -> str | None:
    """Return the reason a URL fails with, None if it comes through; bounds its time."""
    began = time.monotonic()
    try:
        with opener.open(url) as answer:
            assert len(answer.read()) <= MAX_BYTES
        return None
    except FetchError as error:
        assert "secret" not in str(error) and "://" not in str(error)
        return error.reason
    finally:
        elapsed = time.monotonic() - began
        assert elapsed <= DEADLINE + 2


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, hostile: HostileWeb, canary: int, opener: Make) -> None:
    attack = ATTACKS[name]
    url = attack.prepare(name, hostile, canary)
    assert fate(opener(deadline_s=DEADLINE), url) == attack.reason


def test_there_are_at_least_thirty_attacks() -> None:
    assert len(ATTACKS) >= 30


@contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port that neither accepts nor refuses connections, as a dropped packet would."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield int(listener.getsockname()[1])
        for client in waiting:
            client.close()


def test_a_connection_that_hangs(opener: Make) -> None:
    with full_backlog() as port:
        listed = [f"127.0.0.1:{port}"]
        assert fate(opener(allow_private_hosts=listed), f"http://127.0.0.1:{port}/") == "timeout"


@pytest.mark.parametrize(
    ("name", "behaviour", "reason"),
    [
        ("silence", stalls(b""), "timeout"),
        ("a drip", drips(b"\x16\x03\x03\x40\x00\x02", b"\0"), "timeout"),
        ("plain HTTP", says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "tls"),
        ("a close", says(b""), "reset"),
    ],
)
def test_a_tls_handshake_met_with(
    name: str, behaviour: Any, reason: str, hostile: HostileWeb, opener: Make
) -> None:
    hostile.serve("", behaviour)
    assert fate(opener(), hostile.base.replace("http:", "https:") + "/x") == reason


@pytest.mark.parametrize("step", ["begin", "decode"])
def test_what_reading_takes_counts_against_the_deadline(
    step: str, hostile: HostileWeb, opener: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: Any = exchange.HTTPResponse if step == "begin" else exchange
    real = getattr(where, step)

    def slow(*given: Any) -> Any:
        time.sleep(DEADLINE)
        return real(*given)

    monkeypatch.setattr(where, step, slow)
    url = hostile.serve("/", answers(b"image", "Content-Encoding: gzip"))
    assert fate(opener(deadline_s=DEADLINE), url) == "deadline"


def test_slow_redirects_share_one_deadline(hostile: HostileWeb, opener: Make) -> None:
    def slow(connection: socket.socket, stop: threading.Event) -> None:
        stop.wait(0.4)
        number = len(hostile.requests)
        connection.sendall(head(f"Location: /{number}", status="302 Found"))

    for number in range(6):
        hostile.serve(f"/{number}", slow)
    assert fate(opener(deadline_s=DEADLINE), hostile.base + "/0") == "deadline"
    assert len(hostile.requests) <= 3


@pytest.mark.parametrize(("length", "reason"), [(5, None), (6, "too_many_redirects")])
def test_five_redirects_are_followed(
    length: int, reason: str | None, hostile: HostileWeb, opener: Make
) -> None:
    for number in range(length):
        hostile.serve(f"/{number}", says(head(f"Location: {number + 1}", status="301 Moved")))
    hostile.serve(f"/{length}", answers(b"image"))
    assert fate(opener(), hostile.base + "/0") == reason


def names(**known: list[Any]) -> Callable[[str], list[Address]]:
    """Return a resolver: each name's answers in turn, the last one from then on."""

    def lookup(name: str) -> list[Address]:
        given = known[name.removesuffix(".test")]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return [ip_address(text) for text in answer]

    return lookup


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["169.254.169.254"], ["10.1.2.3", "::1"], ["::ffff:127.0.0.1"], ["fe80::1"]],
)
def test_a_name_of_a_private_address(addresses: list[str], canary: int, opener: Make) -> None:
    lookup = names(inside=[addresses])
    assert fate(opener(lookup=lookup), f"http://inside.test:{canary}/") == "private_address"


def test_a_redirect_to_a_name_of_a_private_address(
    hostile: HostileWeb, canary: int, opener: Make
) -> None:
    url = hostile.serve("/", says(head(f"Location: http://inside.test:{canary}/", status="302 F")))
    assert fate(opener(lookup=names(inside=[["127.0.0.1"]])), url) == "private_address"


class Dialled:
    """Connects where it is told, but for one public address: that is the hostile web's."""

    def __init__(self, hostile: HostileWeb) -> None:
        self._port = hostile.port
        self.addresses: list[str] = []

    def __call__(self, address: Address, port: int, timeout: float) -> socket.socket:
        self.addresses.append(str(address))
        where = ("127.0.0.1", self._port) if address == PUBLIC else (str(address), port)
        return socket.create_connection(where, timeout)


def test_only_the_public_ones_of_a_names_addresses_are_connected_to(
    hostile: HostileWeb, canary: int, opener: Make
) -> None:
    hostile.serve("/", answers(b"image"))
    dialled = Dialled(hostile)
    lookup = names(both=[["127.0.0.1", "::1", str(PUBLIC), "10.0.0.1"]])
    assert fate(opener(lookup=lookup, dial_to=dialled), f"http://both.test:{canary}/") is None
    assert dialled.addresses == [str(PUBLIC)]


@pytest.mark.parametrize("cache_s", [0, 300])
def test_rebinding_a_name_gains_nothing(
    cache_s: float, hostile: HostileWeb, canary: int, opener: Make
) -> None:
    """The name is public when it is checked and private a moment later: each is looked at once."""
    hostile.serve("/", answers(b"image"))
    dialled = Dialled(hostile)
    lookup = names(rebound=[[str(PUBLIC)], ["127.0.0.1"]])
    fetch = opener(lookup=lookup, dial_to=dialled, dns_cache_s=cache_s)
    url = f"http://rebound.test:{canary}/"
    assert fate(fetch, url) is None
    assert fate(fetch, url) == (None if cache_s else "private_address")
    assert set(dialled.addresses) == {str(PUBLIC)}
    assert f"Host: rebound.test:{canary}".encode() in hostile.requests[0]


def test_rebinding_by_a_redirect_to_oneself(hostile: HostileWeb, canary: int, opener: Make) -> None:
    hostile.serve("/", says(head("Location: /again", status="302 Found")))
    dialled = Dialled(hostile)
    lookup = names(rebound=[[str(PUBLIC)], ["127.0.0.1"]])
    fetch = opener(lookup=lookup, dial_to=dialled, dns_cache_s=0)
    assert fate(fetch, f"http://rebound.test:{canary}/") == "private_address"
    assert dialled.addresses == [str(PUBLIC)]


def test_a_listed_name_may_be_private_and_others_on_its_address_may_not(
    hostile: HostileWeb, opener: Make
) -> None:
    hostile.serve("/", answers(b"image"))
    lookup = names(ours=[["127.0.0.1"]], theirs=[["127.0.0.1"]])
    fetch = opener(lookup=lookup, allow_private_hosts=[f"Ours.test:{hostile.port}"])
    assert fate(fetch, f"http://ours.test:{hostile.port}/") is None
    assert fate(fetch, f"http://theirs.test:{hostile.port}/") == "private_address"
    assert fate(fetch, f"http://127.0.0.1:{hostile.port}/") == "private_address"


def test_dns_that_hangs(opener: Make) -> None:
    release = threading.Event()

    def lookup(name: str) -> list[Address]:
        release.wait(20)
        return []

    try:
        assert fate(opener(lookup=lookup), "http://hang.test/") == "dns_temporary"
        assert fate(opener(lookup=lookup, timeout=9), "http://hang.test/") == "deadline"
    finally:
        release.set()


def test_proxies_of_the_environment_are_not_used(
    hostile: HostileWeb, canary: int, opener: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary}")
    assert fate(opener(), hostile.serve("/", answers(b"image"))) is None


def test_what_is_sent_is_what_a_request_needs_and_no_more(
    hostile: HostileWeb, opener: Make
) -> None:
    """No cookie set by one answer, and no header from anywhere, is in the next request."""
    set_cookie = answers(b"", "Set-Cookie: id=1", "Location: /b", status="302 Found")
    hostile.serve("/a?q=é".encode().decode("latin-1"), set_cookie)
    hostile.serve("/a?q=%C3%A9", set_cookie)
    hostile.serve("/b", answers(b"image"))
    assert fate(opener(), hostile.base + "/a?q=é#fragment") is None
    sent = [{line.split(b":")[0] for line in h.split(b"\r\n")[1:-2]} for h in hostile.requests]
    assert sent == [{b"Accept-Encoding", b"Host", b"User-Agent", b"Connection"}] * 2


def test_a_block_holds_for_redirects_too(hostile: HostileWeb, opener: Make) -> None:
    hostile.serve("/", says(head("Location: http://img.shop.test/x", status="302 Found")))
    hostile.serve("/moved", says(head("Location: /gone.jpg", status="302 Found")))
    hosts = Blocklist(hosts=frozenset({"shop.test"}))
    assert fate(opener(hosts), hostile.base + "/") == "blocked_host"
    urls = Blocklist(urls=frozenset({hostile.base + "/gone.jpg"}))
    assert fate(opener(urls), hostile.base + "/moved") == "blocked_url"
    assert hostile.asked("/gone.jpg") == 0


def test_nothing_but_get_is_sent(hostile: HostileWeb, opener: Make) -> None:
    with pytest.raises(ValueError, match="GET only"):
        opener().open(hostile.base + "/", data=b"x")
    assert hostile.connections == 0


def test_a_file_is_no_way_out_of_the_folder(tmp_path: Path, opener: Make) -> None:
    with pytest.raises(FetchError, match="bad_scheme"):
        opener().open((tmp_path / "x.jpg").as_uri())
