"""A raw-socket server that may answer anything, and one that nobody may ever reach."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

#: What a path does with its connection, after the request was read; `stop` says the test is over.
Behaviour = Callable[[socket.socket, threading.Event], None]


class HostileWeb:
    """Serves behaviours by path on loopback, each connection in a thread; counts everything."""

    def __init__(self, family: int = socket.AF_INET, port: int = 0) -> None:
        self._listener = socket.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
        self._listener.listen(128)
        self.port = int(self._listener.getsockname()[1])
        self.behaviours: dict[str, Behaviour] = {}
        #: The head of every request, as it came.
        self.requests: list[bytes] = []
        self.connections = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, path: str, behaviour: Behaviour) -> str:
        """Have a path behave so; returns its URL."""
        self.behaviours[path] = behaviour
        return self.base + path

    def asked(self, path: str) -> int:
        """Return how often a path was asked for."""
        return sum(head.split(b" ")[1] == path.encode() for head in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65_536)
                if not piece:
                    return
                head += piece
                if not head.startswith(b"GET "):  # TLS, or whatever else
                    break
            self.requests.append(head)
            path = head.split(b" ")[1].decode() if head.startswith(b"GET ") else ""
            self.behaviours.get(path, _not_found)(connection, self._stop)


def _not_found(connection: socket.socket, stop: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def head(*lines: str, status: str = "200 OK") -> bytes:
    """Return a status line and headers."""
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, "")).encode("latin-1")


def says(data: bytes) -> Behaviour:
    """Send these bytes, then close."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(data)

    return behave


def answers(body: bytes, *lines: str, status: str = "200 OK") -> Behaviour:
    """Send a sound answer."""
    return says(head(f"Content-Length: {len(body)}", *lines, status=status) + body)


def endless(start: bytes, piece: bytes) -> Behaviour:
    """Send `start`, then `piece` for ever, as fast as it is taken."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(start)
        while not stop.is_set():
            connection.sendall(piece)

    return behave


def drips(start: bytes, drop: bytes, every: float = 0.05) -> Behaviour:
    """Send `start`, then `drop` for ever, slowly."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(start)
        while not stop.wait(every):
            connection.sendall(drop)

    return behave


def stalls(start: bytes) -> Behaviour:
    """Send `start`, then nothing more, and keep the connection."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(start)
        stop.wait(30)

    return behave


def resets(start: bytes) -> Behaviour:
    """Send `start`, then reset the connection."""

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(start)
        stop.wait(0.1)  # let it arrive: a reset overtakes what the client has not read yet
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    return behave
