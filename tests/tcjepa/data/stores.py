"""A real HTTP server on loopback whose behaviour a test can spoil, and S3 in a moto server."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Headers = list[tuple[str, str]]


class Store:
    """Serves a folder; after `good[name]` GETs of a file, `faults[name]` more go wrong.

    How is `fault`: `stall`, `drip` and `truncate` after half of the body, `garble` it there, or
    answer `503`, with `retry_after` if set.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.fault = "503"
        self.faults: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self.retry_after: str | None = None
        self.gets: list[tuple[str, str | None]] = []  # (name, Range header)
        self.times: list[float] = []
        self.open = self.most_open = 0
        self.hold = 0.0  # seconds that every GET takes
        self.released = threading.Event()
        self.lock = threading.Lock()
        store = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                store.answer(self)

            def do_HEAD(self) -> None:
                store.answer_head(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, name: str) -> int:
        """Return how many GETs of a file there were."""
        return sum(asked == name for asked, _ in self.gets)

    def name_of(self, path: str) -> str:
        return path.lstrip("/")

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def answer_head(self, handler: _Handler) -> None:
        path = self.folder / handler.path.lstrip("/")
        if not path.is_file():
            handler.send_error(404)
            return
        handler.reply(200, path.stat().st_size, [("Accept-Ranges", "bytes")] * self.ranges)

    def answer(self, handler: _Handler) -> None:
        name, asked = self.name_of(handler.path), handler.headers.get("Range")
        with self.lock:
            self.gets.append((name, asked))
            self.times.append(time.monotonic())
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            fault = self.fault if self.faults[name] > 0 and self.good[name] <= 0 else None
            (self.faults if fault else self.good)[name] -= 1
        try:
            self.released.wait(self.hold)
            self._send(handler, asked, fault)
        except ConnectionError:
            pass  # the client gave up
        finally:
            with self.lock:
                self.open -= 1

    def content(self, handler: _Handler, asked: str | None) -> tuple[int, Headers, bytes] | None:
        """Return (status, headers, body) of a GET, or None for what is not there."""
        path = self.folder / handler.path.lstrip("/")
        if not path.is_file():
            return None
        data = path.read_bytes()
        headers = [("Accept-Ranges", "bytes")] if self.ranges else []
        if asked is None or not self.ranges:
            return 200, headers, data
        first, _, last = asked.removeprefix("bytes=").partition("-")
        return 206, headers, data[int(first) : int(last) + 1]

    def _send(self, handler: _Handler, asked: str | None, fault: str | None) -> None:
        found = self.content(handler, asked)
        if found is None:
            handler.send_error(404)
            return
        if fault == "503":
            handler.send_response(503)
            if self.retry_after is not None:
                handler.send_header("Retry-After", self.retry_after)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        status, headers, data = found
        handler.reply(status, len(data), headers)
        half = len(data) // 2
        if fault == "garble":
            data = data[:half] + bytes(b ^ 0xFF for b in data[half : half + 8]) + data[half + 8 :]
        if fault not in ("stall", "drip", "truncate"):
            handler.wfile.write(data)
            return
        handler.wfile.write(data[:half])
        handler.wfile.flush()
        if fault == "stall":
            self.released.wait()
        while fault == "drip" and not self.released.wait(0.02):
            handler.wfile.write(data[half : half + 1])
            half += 1


class Gate(Store):
    """Stands before another server; the GETs of a file, by the last part of its path, go wrong."""

    def __init__(self, server: str) -> None:
        super().__init__(Path())
        self._server_behind = server.removeprefix("http://")

    def name_of(self, path: str) -> str:
        return path.partition("?")[0].rpartition("/")[2]

    def content(self, handler: _Handler, asked: str | None) -> tuple[int, Headers, bytes]:
        del asked
        status, headers, body, _ = self._forwarded(handler)
        return status, headers, body

    def answer_head(self, handler: _Handler) -> None:
        status, headers, _, size = self._forwarded(handler)
        handler.reply(status, size, headers)

    def _forwarded(self, handler: _Handler) -> tuple[int, Headers, bytes, int]:
        connection = HTTPConnection(self._server_behind)
        connection.request(handler.command, handler.path, headers=dict(handler.headers))
        answer = connection.getresponse()
        body = answer.read()
        hop = ("content-length", "connection", "transfer-encoding", "date", "server")
        headers = [pair for pair in answer.getheaders() if pair[0].lower() not in hop]
        size = int(answer.getheader("Content-Length") or len(body))
        connection.close()
        return answer.status, headers, body, size


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, size: int, headers: Headers) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("Connection", "close")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[str]:
    """Yield the URL of a folder in a fresh bucket of a real moto server; skips without one."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket = f"bucket-{uuid.uuid4().hex}"  # moto's servers of one process share their buckets
        store.mkdir(bucket)
        store.put(f"{folder}/", f"{bucket}/run/shards/", recursive=True)
        yield f"s3://{bucket}/run/shards"
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def spoiled_s3(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[tuple[str, Gate]]:
    """Yield an S3 folder as `s3_bucket` does, and the gate that all requests go through."""
    with s3_bucket(monkeypatch, folder) as url:
        gate = Gate(os.environ["AWS_ENDPOINT_URL"])
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        try:
            yield url, gate
        finally:
            gate.close()
