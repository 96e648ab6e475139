"""Reads from a real HTTP server that misbehaves, and from S3."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import Directory
from tcjepa.data import remote as remote_module
from tcjepa.data.errors import ShardUnavailableError
from tcjepa.data.remote import Access, BrokenOffError, RangesIgnoredError, Remote
from tests.tcjepa.data.stores import Store, s3_bucket, spoiled_s3

PIECE = 1000
DATA = bytes(range(256)) * 40  # 10,240 bytes: ten pieces and a part


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setattr(remote_module, "PIECE", PIECE)
    monkeypatch.setattr(remote_module, "_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "_POLL", 0.05)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(DATA)
    store = Store(tmp_path / "served", ranges=request.param)
    yield store
    store.close()


def remote_of(store: Store, connections: int = 4, timeout_s: float = 20) -> Remote:
    return Remote(Directory(store.url), Access(connections, timeout_s))


def test_whole_file_with_and_without_ranges(store: Store) -> None:
    remote = remote_of(store)
    assert remote.size("file") == len(DATA)
    for size in (len(DATA), None):
        blocks = list(remote.blocks("file", size))
        assert b"".join(blocks) == DATA
        if size and store.ranges:
            assert [len(block) for block in blocks] == [PIECE] * 10 + [240]
    assert remote.read("file") == DATA


def test_ranges_are_tried_once(store: Store) -> None:
    remote = remote_of(store)
    for _ in range(3):
        assert b"".join(remote.blocks("file", len(DATA))) == DATA
    ranged = [asked for _, asked in store.gets if asked is not None]
    assert len(ranged) == (1 + 3 * 11 if store.ranges else 1)


def test_pieces_are_fetched_at_the_same_time(store: Store) -> None:
    store.hold = 0.2
    assert b"".join(remote_of(store, connections=3).blocks("file", len(DATA))) == DATA
    assert store.most_open == (3 if store.ranges else 1)


def test_parts(store: Store) -> None:
    remote = remote_of(store)
    if store.ranges:
        assert remote.read_range("file", 300, 345) == DATA[300:345]
        with pytest.raises(ShardUnavailableError, match="tried"), pytest.warns(UserWarning):
            remote.read_range("file", len(DATA) - 1, len(DATA) + 1)
    else:
        with pytest.raises(RangesIgnoredError):
            remote.read_range("file", 300, 345)


@pytest.mark.filterwarnings("ignore:reading file")
@pytest.mark.parametrize("fault", ["stall", "drip", "truncate", "503"])
def test_a_passing_fault_costs_one_more_attempt(store: Store, fault: str) -> None:
    remote = remote_of(store, timeout_s=1)
    assert b"".join(remote.blocks("file", len(DATA))) == DATA  # ranges are known now
    store.fault, store.faults["file"] = fault, 1
    assert remote.read("file") == DATA
    assert store.faults["file"] == 0


@pytest.mark.filterwarnings("ignore:reading file")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stall", "no answer within data.timeout_s = 0.5 s"),
        ("drip", "no answer within data.timeout_s = 0.5 s"),
        ("truncate", "ayload"),
        ("503", "503"),
    ],
)
def test_a_lasting_fault_ends(store: Store, fault: str, message: str) -> None:
    remote = remote_of(store, connections=1, timeout_s=0.5)
    store.fault, store.faults["file"] = fault, 1000
    with pytest.raises(ShardUnavailableError, match=f"cannot read file .*tried 4.*{message}"):
        remote.read("file")


def test_retry_after_is_honoured(store: Store) -> None:
    remote = remote_of(store, connections=1)
    store.faults["file"], store.retry_after = 1, "1"
    with pytest.warns(UserWarning, match="503.*trying again"):
        assert remote.read_range("file", 0, len(DATA)) == DATA
    first, second = store.times
    assert second - first >= 1


def test_missing_and_refused_are_not_asked_for_again(store: Store) -> None:
    remote = remote_of(store)
    with pytest.raises(FileNotFoundError):
        remote.size("nothing")
    with pytest.raises(FileNotFoundError):
        remote.read_range("nothing", 0, 10)
    assert store.count("nothing") <= 2  # fsspec's own HEAD and GET, and ours


def test_unreachable_is_no_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec says `FileNotFoundError` of a HEAD that failed for any reason."""
    monkeypatch.setattr(remote_module, "_PAUSE", 0.01)
    store = Store(tmp_path)
    remote = remote_of(store)
    store.close()
    with pytest.raises(ShardUnavailableError, match="Connect"), pytest.warns(UserWarning):
        remote.size("file")


def test_closing_breaks_off(store: Store) -> None:
    remote = remote_of(store, timeout_s=1000)
    store.fault, store.faults["file"] = "stall", 1000
    errors: list[Exception] = []

    def read() -> None:
        try:
            remote.read("file")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not store.gets:
        time.sleep(0.01)
    remote.close()
    thread.join(timeout=60)
    assert not thread.is_alive() and isinstance(errors[0], BrokenOffError)


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "PIECE", PIECE)
    (tmp_path / "file").write_bytes(DATA)
    with s3_bucket(monkeypatch, tmp_path) as url:
        remote = Remote(Directory(url), Access(4, 30))
        assert remote.size("file") == len(DATA)
        assert [len(b) for b in remote.blocks("file", len(DATA))] == [PIECE] * 10 + [240]
        assert remote.read("file") == DATA
        assert remote.read_range("file", 5, 17) == DATA[5:17]
        with pytest.raises(FileNotFoundError):
            remote.read_range("nothing", 0, 1)


@pytest.mark.filterwarnings("ignore:reading file")
@pytest.mark.parametrize("fault", ["stall", "drip", "truncate", "503"])
def test_s3_that_misbehaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A fault that passes costs an attempt, one that lasts ends, in the time that is set for it."""
    monkeypatch.setattr(remote_module, "_PAUSE", 0.01)
    monkeypatch.setattr(remote_module, "_POLL", 0.05)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, which take seconds
    (tmp_path / "file").write_bytes(DATA)
    with spoiled_s3(monkeypatch, tmp_path) as (url, gate):
        remote = Remote(Directory(url), Access(1, 1))
        assert remote.read("file") == DATA
        gate.fault, gate.faults["file"] = fault, 1
        before = gate.count("file")
        assert remote.read("file") == DATA
        assert gate.count("file") == before + 2
        gate.faults["file"] = 1000
        with pytest.raises(ShardUnavailableError, match=r"cannot read file .*tried 4"):
            remote.read("file")
