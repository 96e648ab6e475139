"""One process at a time, on disks and on object stores."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.lock import LOCK, locked
from pipeline.settings import ConfigError
from pipeline.storage import Directory


@pytest.fixture(params=["disk", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Directory]:
    if request.param == "disk":
        yield Directory(tmp_path / "run")
        return
    remote = Directory(f"memory://lock-{tmp_path.name}")
    yield remote
    remote.fs.store.clear()


def test_a_second_holder_is_refused_until_the_first_is_done(run: Directory) -> None:
    with locked(run), pytest.raises(ConfigError, match="working in"), locked(run):
        pass
    with locked(run):
        assert run.exists(LOCK)


def test_an_error_inside_frees_the_lock(run: Directory) -> None:
    with pytest.raises(RuntimeError), locked(run):
        raise RuntimeError
    with locked(run):
        assert run.exists(LOCK)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Directory]:
    remote = Directory(f"memory://lock-{tmp_path.name}")
    yield remote
    remote.fs.store.clear()


def _held_since(store: Directory, age: float) -> None:
    holder = {"token": "x", "host": "gone", "pid": 1, "time": time.time() - age}
    store.write_bytes(LOCK, json.dumps(holder).encode())


def test_a_killed_holder_is_waited_for_and_then_replaced(
    store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_SETTLE_S", 0.0)
    _held_since(store, lock.STALE_S - 60)
    with pytest.raises(ConfigError, match=r"gone .* wait \d+ s or delete"), locked(store):
        pass
    _held_since(store, lock.STALE_S + 1)
    with locked(store):
        assert json.loads(store.read_bytes(LOCK))["token"] != "x"
    assert not store.exists(LOCK)


def test_the_holder_says_that_it_is_there(
    store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with locked(store):
        first = json.loads(store.read_bytes(LOCK))["time"]
        deadline = time.monotonic() + 10
        while json.loads(store.read_bytes(LOCK))["time"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_who_lost_the_lock_leaves_it_to_the_new_holder(store: Directory) -> None:
    with locked(store):
        _held_since(store, 0)
    assert store.exists(LOCK)


def test_who_lost_the_lock_stops(
    store: Directory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at work in one run would write over each other."""
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # Dask's may be there
    try:
        _lose(store)
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads(store.read_bytes(LOCK))["token"] == "x", "the new holder's stays"
    assert "another process took over" in capsys.readouterr().err


def _lose(store: Directory) -> None:
    with pytest.raises(KeyboardInterrupt), locked(store):
        _held_since(store, 0)
        time.sleep(60)


class ConnectError(Exception):
    """No `OSError`, as botocore's of a store that is out of reach is none."""


@pytest.mark.parametrize("error", [OSError, ConnectError])
def test_a_beat_that_fails_is_not_the_last(
    error: type[Exception], store: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with locked(store):
        write, failed = Directory.write_bytes, threading.Event()

        def once(run: Directory, name: str, data: bytes) -> None:
            if not failed.is_set():
                failed.set()
                raise error("no route to host")
            write(run, name, data)

        monkeypatch.setattr(Directory, "write_bytes", once)
        assert failed.wait(60)
        first = json.loads(store.read_bytes(LOCK))["time"]
        deadline = time.monotonic() + 60
        while json.loads(store.read_bytes(LOCK))["time"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
