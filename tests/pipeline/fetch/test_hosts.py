"""Turns at a host: how many, how often, none while it is down; and tables that stay small."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.fetch.bounded import BoundedTable
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.hosts import Hosts
from pipeline.fetch.opener import PolicyOpener
from tests.pipeline.fetch.web import HostileWeb, answers, head, stalls

HOST = ("example.com", 80)
OTHER = ("example.org", 80)


def hosts(**options: object) -> Hosts:
    return Hosts(FetchConfig.model_validate({"threads": 2, "host_failures": 3, **options}))


def test_no_more_than_so_many_are_at_a_host_at_once() -> None:
    table = hosts(host_concurrency=3)
    here, most, lock = 0, 0, threading.Lock()

    def visit(_: int) -> None:
        nonlocal here, most
        with table.turn(HOST):
            with lock:
                here += 1
                most = max(most, here)
            time.sleep(0.01)
            with lock:
                here -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(visit, range(40)))
    assert most == 3


def test_waiting_for_a_busy_host_ends(hostile: HostileWeb) -> None:
    table = hosts(host_concurrency=1, host_wait_s=0.1)
    with table.turn(HOST):
        with table.turn(OTHER) as waited:
            assert waited < 0.1
        with pytest.raises(FetchError, match="host_busy"), table.turn(HOST):
            pass
    with table.turn(HOST):
        pass


def test_the_rate_is_kept_at_each_host_by_itself() -> None:
    table = hosts(host_rate=20, host_wait_s=5)
    starts: dict[tuple[str, int], list[float]] = {HOST: [], OTHER: []}

    def visit(number: int) -> None:
        host = (HOST, OTHER)[number % 2]
        with table.turn(host):
            starts[host].append(time.monotonic())

    began = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(visit, range(12)))
    for times in starts.values():
        assert len(times) == 6
        assert max(times) - began >= 5 / 20 - 0.01


def test_a_rate_that_leaves_no_turn_in_time_is_said_at_once() -> None:
    table = hosts(host_rate=0.5, host_wait_s=2)
    with table.turn(HOST):
        pass
    table.pause(HOST, 60)
    began = time.monotonic()
    with pytest.raises(FetchError, match="host_busy"), table.turn(HOST):
        pass
    assert time.monotonic() - began < 1


def test_redirects_share_the_time_to_wait_for_turns(
    hostile: HostileWeb, opener: Callable[..., PolicyOpener]
) -> None:
    for number in range(4):
        moved = answers(b"", f"Location: /{number + 1}", status="302 Found")
        hostile.serve(f"/{number}", moved)
    hostile.serve("/4", answers(b"image"))
    # Each turn comes 0.3 s after the one before.
    began = time.monotonic()
    with pytest.raises(FetchError, match="host_busy"):
        opener(host_rate=1 / 0.3, host_wait_s=0.7).open(hostile.base + "/0")
    assert time.monotonic() - began < 0.9
    fetch = opener(host_rate=1 / 0.3, host_wait_s=1.5)
    assert fetch.open(hostile.base + "/0").read() == b"image"


def fail(table: Hosts, began: float | None = None) -> None:
    with table.turn(HOST):
        table.unanswered(HOST, time.monotonic() if began is None else began)


def test_a_dead_host_is_skipped_and_one_url_finds_out_that_it_is_back() -> None:
    table = hosts(host_down_s=0.2)
    for _ in range(3):
        fail(table)
    with pytest.raises(FetchError, match="host_down"), table.turn(HOST):
        pass
    with table.turn(OTHER):
        pass
    time.sleep(0.25)
    with table.turn(HOST):  # the one that finds out
        with pytest.raises(FetchError, match="host_down"), table.turn(HOST):
            pass
        table.answered(HOST)
    for _ in range(2):
        fail(table)
    with table.turn(HOST):
        pass


def test_slow_images_at_the_end_do_not_close_a_host_that_answers() -> None:
    """They began before its last answer, however many of them end after it."""
    table = hosts()
    began = time.monotonic()
    table.answered(HOST)
    for _ in range(10):
        fail(table, began)
    with table.turn(HOST):
        turned = True
    assert turned


def test_a_host_is_not_closed_by_what_can_be_in_flight_at_once() -> None:
    table = hosts(threads=8, host_failures=3)
    for _ in range(8):
        fail(table)
    fail(table)  # the ninth began after another had ended
    with pytest.raises(FetchError, match="host_down"), table.turn(HOST):
        pass


def test_hosts_are_never_skipped_if_so_configured() -> None:
    table = hosts(host_failures=0)
    for _ in range(50):
        fail(table)
    with table.turn(HOST):
        turned = True
    assert turned


def test_the_opener_tells_the_dead_from_the_living(
    hostile: HostileWeb, opener: Callable[..., PolicyOpener]
) -> None:
    """An error page is an answer; silence is none."""
    fetch = opener(timeout=0.05, threads=2, host_failures=3)
    busy = hostile.serve("/busy", answers(b"", status="503 Busy"))
    silent = hostile.serve("/silent", stalls(b""))

    def reasons(url: str, times: int) -> list[str]:
        found = []
        for _ in range(times):
            with pytest.raises(FetchError) as caught:
                fetch.open(url)
            found.append(caught.value.reason)
        return found

    assert reasons(busy, 5) == ["http_5xx"] * 5
    assert reasons(silent, 2) == ["timeout"] * 2
    assert reasons(busy, 1) == ["http_5xx"]
    assert reasons(silent, 5) == ["timeout"] * 3 + ["host_down"] * 2
    assert hostile.asked("/silent") == 5


@pytest.mark.parametrize(("late", "reason"), [(0.35, None), (0.0, "host_down")])
def test_a_late_redirect_does_not_close_the_host_it_leads_to(
    late: float, reason: str | None, hostile: HostileWeb, opener: Callable[..., PolicyOpener]
) -> None:
    with HostileWeb() as victim:
        listed = [f"127.0.0.1:{web.port}" for web in (hostile, victim)]
        options = {"deadline_s": 0.5, "timeout": 5, "threads": 1, "host_failures": 2}
        fetch = opener(allow_private_hosts=listed, **options)
        good = victim.serve("/good", answers(b"image"))
        location = f"Location: {victim.serve('/slow', stalls(b''))}"

        def redirect(connection: socket.socket, stop: threading.Event) -> None:
            stop.wait(late)
            connection.sendall(head(location, status="302 Found"))

        url = hostile.serve("/", redirect)
        for _ in range(2):
            with pytest.raises(FetchError, match="deadline"):
                fetch.open(url)
        assert victim.asked("/slow") == 2
        if reason is None:
            assert fetch.open(good).read() == b"image"
        else:
            with pytest.raises(FetchError, match=reason):
                fetch.open(good)


def test_a_million_hosts_stay_cheap() -> None:
    table: BoundedTable[int, int] = BoundedTable(100)
    for number in range(10_000):
        table.put(number, number)
        assert table.get(0) == 0  # used all the time, so never forgotten
    assert len(table) == 100
    assert table.get(9_999) == 9_999
    assert table.get(5_000) is None


def test_what_is_in_use_is_not_forgotten() -> None:
    table: BoundedTable[int, str] = BoundedTable(2, lambda value: value == "idle")
    table.put(1, "busy")
    table.put(2, "idle")
    table.put(3, "busy")
    table.put(4, "busy")
    assert [table.get(key) for key in (1, 2, 3, 4)] == ["busy", None, "busy", "busy"]
