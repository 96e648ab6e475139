"""`python -m pipeline.sources.scenes`: renders the world on demand and misbehaves as configured.

One process binds the port and forks the others, since a single interpreter renders too slowly. They
end with their parent, however that ends: each watches its standard input, which the parent's death
closes, and its parent's process id (a forked sibling may hold the pipe open).
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

import cv2

from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.faults import url_fault
from pipeline.sources.scenes.images import image_bytes
from pipeline.sources.scenes.rows import HOST, path
from pipeline.sources.scenes.server import READY
from pipeline.sources.scenes.textures import paint_all
from pipeline.sources.scenes.world import Split

_PATH: Final = re.compile(r"/(moved/)?(train|test)/(\d{6,9})\.jpg")
_REFUSALS: Final = {
    "not_found": HTTPStatus.NOT_FOUND,
    "gone": HTTPStatus.GONE,
    "forbidden": HTTPStatus.FORBIDDEN,
}
_IDLE_SECONDS: Final = 30.0  # after which a silent connection is closed
_WATCH_SECONDS: Final = 0.2
_MOST_PROCESSES: Final = 4


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, config: ScenesConfig) -> None:
        super().__init__((HOST, config.port), _Handler)
        self.config = config
        # Forked processes wait on one socket; who comes too late must not block in `accept`.
        self.socket.setblocking(False)
        self._failed = mmap.mmap(-1, max(1, config.train))  # shared with forked processes
        self._lock = multiprocessing.get_context("fork").Lock()

    def server_bind(self) -> None:
        # HTTPServer would look up the host's name, which can take seconds without a network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = HOST, self.socket.getsockname()[1]

    def first_time(self, index: int) -> bool:
        """Return whether this is the first request for a flaky train URL."""
        with self._lock:
            first = self._failed[index] == 0
            self._failed[index] = 1
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


def _read_config() -> ScenesConfig:
    # Unbuffered: what follows the line, the end of the stream, is for `_watch_parent`.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return ScenesConfig.model_validate_json(line)


def main() -> None:
    """Serve the config given as one line of JSON on standard input, until that closes.

    Prints "ready", or the error number of a port that cannot be bound.
    """
    parent = os.getppid()
    # Ctrl-C reaches the whole process group; the parent, which saves its state, ends the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # concurrency comes from the requests
    try:
        server = _Server(_read_config())
    except OSError as error:
        print(error.errno, flush=True)
        return
    paint_all()
    print(READY, flush=True)
    children: list[int] = []
    for _ in range(min(_MOST_PROCESSES, os.cpu_count() or 1) - 1):
        first = os.getpid()
        child = os.fork()
        if child == 0:
            parent, children = first, []
            break
        children.append(child)
    threading.Thread(target=_watch_parent, args=(server, parent), daemon=True).start()
    server.serve_forever(_WATCH_SECONDS)
    for child in children:  # they hold the port too; who waits for this process may bind it next
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
