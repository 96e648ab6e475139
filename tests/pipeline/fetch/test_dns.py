"""Names are looked up once, however many ask; a resolver that hangs holds nobody for long."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from pipeline.fetch.addresses import Address
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.dns import Resolver, system_lookup
from pipeline.fetch.errors import FetchError

ADDRESS = ip_address("93.184.216.34")


class Lookups:
    """A resolver that counts, and fails or waits as told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[str] = []
        self.proceed = threading.Event()
        self.proceed.set()

    def __call__(self, name: str) -> list[Address]:
        self.asked.append(name)
        self.proceed.wait(20)
        if self.error is not None:
            raise self.error
        return [ADDRESS, ADDRESS]


def reason(resolver: Resolver, name: str = "a.test", seconds: float = 5) -> str | None:
    try:
        assert resolver.resolve(name, Deadline(seconds, seconds)) == (ADDRESS,)
    except FetchError as error:
        return error.reason
    return None


def test_an_answer_is_kept_for_its_time() -> None:
    lookups = Lookups()
    resolver = Resolver(0.3, lookups)
    for _ in range(3):
        assert reason(resolver) is None
    assert lookups.asked == ["a.test"]
    time.sleep(0.35)
    assert reason(resolver) is None
    assert lookups.asked == ["a.test"] * 2


def test_a_name_that_does_not_exist_is_asked_for_once() -> None:
    lookups = Lookups(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    resolver = Resolver(300, lookups)
    assert [reason(resolver) for _ in range(3)] == ["dns"] * 3
    assert len(lookups.asked) == 1


def test_a_failure_of_the_resolver_is_not_remembered() -> None:
    lookups = Lookups(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    resolver = Resolver(300, lookups)
    assert [reason(resolver) for _ in range(2)] == ["dns_temporary"] * 2
    lookups.error = None
    assert reason(resolver) is None
    assert len(lookups.asked) == 3


@pytest.mark.parametrize("error", [UnicodeError("label too long"), ValueError("x"), OSError("x")])
def test_whatever_a_resolver_raises_has_a_reason(error: Exception) -> None:
    assert reason(Resolver(300, Lookups(error))) == "dns"


def test_many_who_ask_at_once_share_a_lookup() -> None:
    lookups = Lookups()
    lookups.proceed.clear()
    resolver = Resolver(300, lookups)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(reason, resolver) for _ in range(8)]
        time.sleep(0.1)
        lookups.proceed.set()
        assert [future.result() for future in asked] == [None] * 8
    assert len(lookups.asked) == 1


def test_a_hanging_name_holds_up_no_other() -> None:
    lookups = Lookups()
    lookups.proceed.clear()
    resolver = Resolver(300, lookups)
    began = time.monotonic()
    assert reason(resolver, "slow.test", 0.2) in {"dns_temporary", "deadline"}
    assert time.monotonic() - began < 2
    threads = threading.active_count()
    with ThreadPoolExecutor(40) as pool:  # more than there are resolver threads
        failed = list(pool.map(lambda n: reason(resolver, f"{n}.test", 0.2), range(80)))
    assert set(failed) <= {"dns_temporary", "deadline"}
    assert threading.active_count() - threads <= 32
    lookups.proceed.set()
    assert reason(resolver, "slow.test") is None


def test_the_systems_resolver() -> None:
    assert ip_address("127.0.0.1") in system_lookup("localhost")
    with pytest.raises(OSError):
        system_lookup("name.invalid")
