"""A loopback HTTP server that renders the world on demand and misbehaves as configured.

It runs in a process of its own, so that the pipeline downloads it like any other host. The process
ends with its parent, however that ends: it watches its standard input, which the parent's death
closes, and its parent's process id (a forked sibling may hold the pipe open).
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import cv2

import pipeline
from pipeline.settings import ConfigError
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.faults import url_fault
from pipeline.sources.scenes.images import image_bytes
from pipeline.sources.scenes.rows import HOST, path
from pipeline.sources.scenes.world import Split

_PATH: Final = re.compile(r"/(moved/)?(train|test)/(\d{6,9})\.jpg")
_REFUSALS: Final = {
    "not_found": HTTPStatus.NOT_FOUND,
    "gone": HTTPStatus.GONE,
    "forbidden": HTTPStatus.FORBIDDEN,
}
_READY: Final = "ready"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
_IDLE_SECONDS: Final = 30.0  # after which a silent connection is closed
_WATCH_SECONDS: Final = 0.5


class SceneServer:
    """Context manager: serves a world on 127.0.0.1 at `config.port` while it is open.

    Entering raises `ConfigError` if the port is taken. A URL's bytes do not depend on the order or
    number of requests; only `flaky` URLs remember, for the life of the process, that they failed.
    """

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sources.scenes.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _import_path()},
        )
        try:
            self._start(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def _start(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(self.config.model_dump_json() + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its answer below, an empty line, says so
        answered, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        answer = process.stdout.readline().strip() if answered else "no answer"
        if answer == str(errno.EADDRINUSE):
            raise ConfigError(
                f"source.port: {self.config.port} is already in use on {HOST}; end the run that "
                f"uses it, or set a free one, such as source.port={_free_port()}"
            )
        if answer == str(errno.EACCES):
            raise ConfigError(
                f"source.port: {self.config.port} may not be used by this account; set a free "
                f"one, such as source.port={_free_port()}"
            )
        if answer != _READY:
            raise RuntimeError(f"the scene server did not start (it said {answer!r})")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()  # the server's sign to end
        except BrokenPipeError:
            pass
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _import_path() -> str:
    """Return a PYTHONPATH on which this very `pipeline` package comes first."""
    here = str(Path(next(iter(pipeline.__path__))).parent)
    inherited = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{inherited}" if inherited else here


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, config: ScenesConfig) -> None:
        super().__init__((HOST, config.port), _Handler)
        self.config = config
        self._failed: set[int] = set()
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        # HTTPServer would look up the host's name, which can take seconds without a network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = HOST, self.socket.getsockname()[1]

    def first_time(self, index: int) -> bool:
        """Return whether this is the first request for a flaky train URL."""
        with self._lock:
            first = index not in self._failed
            self._failed.add(index)
            return first

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet

    def do_GET(self) -> None:
        server = cast(_Server, self.server)
        found = _PATH.fullmatch(self.path)
        if found is None:
            return self._page(HTTPStatus.NOT_FOUND)
        moved, split, index = found[1], cast(Split, found[2]), int(found[3])
        config = server.config
        if index >= (config.train if split == "train" else config.test):
            return self._page(HTTPStatus.NOT_FOUND)
        fault = url_fault(config, split, index)
        if moved:
            if fault != "redirect":
                return self._page(HTTPStatus.NOT_FOUND)
            return self._image(image_bytes(config, split, index))
        if fault in _REFUSALS:
            return self._page(_REFUSALS[fault])
        if fault == "html":
            return self._page(HTTPStatus.OK)
        if fault == "redirect":
            location = ("Location", f"/moved{path(split, index)}")
            return self._page(HTTPStatus.FOUND, [location])
        if fault == "flaky" and server.first_time(index):
            return self._page(HTTPStatus.INTERNAL_SERVER_ERROR)
        if fault == "slow":
            time.sleep(config.slow_seconds)
        headers = [("X-Robots-Tag", "noai")] if fault == "noai" else []
        return self._image(image_bytes(config, split, index), headers)

    def _image(self, data: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._answer(HTTPStatus.OK, "image/jpeg", data, headers)

    def _page(self, status: HTTPStatus, headers: Sequence[tuple[str, str]] = ()) -> None:
        page = f"<!doctype html><title>{status.phrase}</title><p>{status.phrase}</p>".encode()
        self._answer(status, "text/html; charset=utf-8", page, headers)

    def _answer(
        self,
        status: HTTPStatus,
        content_type: str,
        data: bytes,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the pipeline's own records tell what was fetched."""


def _watch_parent(server: _Server, parent: int) -> None:
    """End the server when standard input closes or the parent is gone."""
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], _WATCH_SECONDS)
        if readable and not os.read(0, 1):
            break
    server.shutdown()


def main() -> int:
    """Serve the config given as one line of JSON on standard input, until that closes.

    Prints "ready", or the error number of a port that cannot be bound.
    """
    parent = os.getppid()
    # Ctrl-C reaches the whole process group; the parent, which saves its state, ends the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # concurrency comes from the requests
    config = ScenesConfig.model_validate_json(sys.stdin.buffer.raw.readline())
    try:
        server = _Server(config)
    except OSError as error:
        print(error.errno, flush=True)
        return 1
    print(_READY, flush=True)
    threading.Thread(target=_watch_parent, args=(server, parent), daemon=True).start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
