"""Reads from remote storage that always end: every wait has a deadline, every failure a name.

Works with any fsspec back end. Their own timeouts differ (aiohttp gives a whole file 5 minutes,
botocore a socket 60 s, others wait for ever), and none ends a connection that drips a byte now and
then. So each piece of at most 8 MiB must be here within `timeout_s`, or it is asked for again.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar

from fsspec.asyn import AsyncFileSystem

from pipeline.storage import Directory
from tcjepa.data.errors import DataError, ShardUnavailableError

PIECE: Final = 8 * 2**20
_BLOCK: Final = 2**20
_ATTEMPTS: Final = 4
_PAUSE: Final = 0.25  # before the second attempt; doubles for each further one [s]
_POLL: Final = 0.5  # how soon a broken-off wait is noticed [s]
#: 4xx answers that may be another one next time: timeout, too early, too many requests.
_PASSING: Final = (408, 425, 429)

T = TypeVar("T")


class Access(NamedTuple):
    """How remote files are read: config keys `data.fetch_ranges` and `data.timeout_s` [s]."""

    connections: int
    timeout_s: float


class StalledError(OSError):
    """A read that did not end in time."""


class RangesIgnoredError(OSError):
    """A store that answers a request for a part of a file with all of it."""


class BrokenOffError(DataError):
    """A read that nobody waits for any more."""


class Remote:
    """The files of a remote directory; safe between threads.

    Reads raise `FileNotFoundError` for a file that is not there, `ShardUnavailableError` if the
    store does not deliver in 4 attempts with growing pauses (or those that it asks for with
    Retry-After, up to `timeout_s`), and `BrokenOffError` after `close`.
    """

    def __init__(self, directory: Directory, access: Access) -> None:
        self.directory, self.access = directory, access
        _ = directory.fs  # opened here, once, and not by several threads at a time
        self._closed = threading.Event()
        self._serves_ranges: bool | None = None  # None: not tried yet
        self._probing = threading.Lock()

    def close(self) -> None:
        """Break off what is being read, at the latest half a second from now."""
        self._closed.set()

    def size(self, name: str) -> int | None:
        """Return a file's size [bytes]; None if the store does not tell."""
        info = self.retried(name, lambda: self._within(self._call("info"), self._path(name)))
        size = info.get("size")
        return int(size) if size is not None else None

    def read(self, name: str) -> bytes:
        """Return a whole file's bytes, for small ones."""
        size = self.size(name)
        return self.retried(name, lambda: b"".join(self.blocks(name, size)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes `[start, end)` of a file, all of them.

        Raises also `RangesIgnoredError`, and `ShardUnavailableError` if the file ends before.
        """

        def once() -> bytes | None:
            cat = self._call("cat_file")
            data = self._within(lambda path: cat(path, start=start, end=end), self._path(name))
            if len(data) > end - start:
                return None
            if len(data) < end - start:
                raise OSError(f"{len(data)} bytes of {end - start} came")
            return bytes(data)

        data = self.retried(name, once)
        if data is None:
            raise RangesIgnoredError(f"{self.directory.url} ignores ranges")
        return data

    def blocks(self, name: str, size: int | None) -> Iterator[bytes]:
        """Yield a file's bytes in order: pieces fetched in parallel, or one stream.

        Closing the iterator breaks off what is under way. A stream that fails in the middle raises
        the back end's error or `StalledError`, because what was yielded cannot be taken back.
        """
        if size is not None and (size <= PIECE or self._ranges_work(name)):
            begun = False
            try:
                for piece in self._pieces(name, size):
                    begun = True
                    yield piece
                return
            except RangesIgnoredError:
                if begun:  # by another server behind the same name, or the file has grown
                    raise
                if size > PIECE:
                    self._serves_ranges = False
        yield from self._stream(name)

    def _pieces(self, name: str, size: int) -> Iterator[bytes]:
        spans = [(start, min(start + PIECE, size)) for start in range(0, size, PIECE)]
        waiting: deque[Future[bytes]] = deque()
        pool = ThreadPoolExecutor(self.access.connections, "pieces")
        try:
            for start, end in spans:
                waiting.append(pool.submit(self.read_range, name, start, end))
                if len(waiting) >= self.access.connections:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _stream(self, name: str) -> Iterator[bytes]:
        fs = self.directory.fs
        options: dict[str, Any] = {"block_size": 0}
        if "http" in fs.protocol:  # with a size, whatever it is, it spares us a HEAD
            options |= {"timeout": _without_total(self.access.timeout_s), "size": 1}
        source = self._within(lambda path: fs.open(path, "rb", **options), self._path(name))
        try:
            while True:
                deadline, piece = time.monotonic() + self.access.timeout_s, 0
                while piece < PIECE:
                    block = self._within(source.read, _BLOCK, until=deadline)
                    if not block:
                        return
                    piece += len(block)
                    yield bytes(block)
        finally:
            source.close()

    def _ranges_work(self, name: str) -> bool:
        """Ask once, for one byte: a server that ignores ranges would send the whole shard."""
        with self._probing:
            if self._serves_ranges is None:
                self._serves_ranges = self.retried(
                    name, lambda: self._within(self._probe, self._path(name))
                )
        return bool(self._serves_ranges)

    def _probe(self, path: str) -> bool:
        with self.directory.fs.open(path, "rb", block_size=_BLOCK, cache_type="none") as file:
            try:
                file.seek(1)
                return len(file.read(1)) == 1
            except ValueError:  # what fsspec's HTTP file raises when all comes instead of a part
                return False

    def _path(self, name: str) -> str:
        return self.directory.path(name)

    def _call(self, method: str) -> Callable[..., Any]:
        """Return a method of the file system that cancels its request at the deadline, if it can.

        Of others the request goes on in its thread when we have long given up on it.
        """
        fs = self.directory.fs
        function: Callable[..., Any] = getattr(fs, method)
        if not isinstance(fs, AsyncFileSystem):
            return function
        return lambda *args, **keys: function(*args, timeout=self.access.timeout_s, **keys)

    def _within(self, function: Callable[[Any], T], argument: Any, until: float | None = None) -> T:
        """Return `function(argument)`, computed in a thread that is left behind at the deadline."""
        result: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                result.append(function(argument))
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        until = until if until is not None else time.monotonic() + self.access.timeout_s
        threading.Thread(target=work, name="remote-read", daemon=True).start()
        while not done.wait(min(_POLL, max(0.0, until - time.monotonic()))):
            if self._closed.is_set():
                raise BrokenOffError("the loader was closed")
            if time.monotonic() >= until:
                raise self._stalled()
        if errors and isinstance(errors[0], TimeoutError):  # the back end's own clock was faster
            raise self._stalled() from errors[0]
        if errors:
            raise errors[0]
        return result[0]

    def _stalled(self) -> StalledError:
        return StalledError(f"no answer within data.timeout_s = {self.access.timeout_s:g} s")

    def pause(self, attempt: int, error: BaseException) -> None:
        """Wait before the next attempt: 0.25, 0.5, 1 s, or what the store asks for."""
        seconds = max(_PAUSE * 2**attempt, min(_retry_after(error), self.access.timeout_s))
        if self._closed.wait(seconds):
            raise BrokenOffError("the loader was closed")

    def retried(self, name: str, function: Callable[[], T]) -> T:
        """Return `function()`, which reads a file, called up to 4 times; raises as all reads do."""
        for attempt in range(_ATTEMPTS):
            if self._closed.is_set():
                raise BrokenOffError("the loader was closed")
            try:
                return function()
            except DataError:
                raise
            except Exception as error:  # every fsspec back end has errors of its own
                origin = _origin(error)
                if isinstance(origin, FileNotFoundError):
                    raise
                text = f"{type(origin).__name__}: {origin}"
                if attempt == _ATTEMPTS - 1 or _is_final(origin):
                    raise ShardUnavailableError(
                        f"cannot read {name} of {self.directory.url}, tried {attempt + 1} "
                        f"time{'s' if attempt else ''}: {text}"
                    ) from error
                warnings.warn(f"reading {name}: {text}; trying again", stacklevel=2)
                self.pause(attempt, origin)
        raise AssertionError


def _origin(error: BaseException) -> BaseException:
    """Return what was really wrong: fsspec's HTTP calls every failed HEAD a missing file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        status = getattr(cause, "status", None)
        passing = type(cause).__module__.startswith("aiohttp") and status not in (404, 410)
        if passing or isinstance(cause, TimeoutError | ConnectionError):
            return cause
    return error


def _is_final(error: BaseException) -> bool:
    """Return whether asking again is pointless: the request itself is refused."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
    return refused or isinstance(error, PermissionError)


def _retry_after(error: BaseException) -> float:
    """Return the seconds that an HTTP answer's Retry-After asks for; 0 for none, or for a date."""
    headers = getattr(error, "headers", None) or {}
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except (TypeError, ValueError):
        return 0.0


def _without_total(seconds: float) -> Any:
    """Return aiohttp's timeout without its 5 minutes for a whole file, which large shards need."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)


__all__ = ["PIECE", "Access", "BrokenOffError", "RangesIgnoredError", "Remote", "StalledError"]
