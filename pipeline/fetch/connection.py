"""One TCP or TLS connection to an address that was checked, every operation under the deadline."""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from typing import Final

from pipeline.fetch.addresses import Address
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.errors import FetchError

#: Connects to an address and port within some seconds; raises OSError.
Dial = Callable[[Address, int, float], socket.socket]

#: Room for status line and headers, interim answers included.
MAX_HEAD: Final = 262_144
#: Room for one line of it; `email`, which reads headers, is quadratic in the length of some.
MAX_LINE: Final = 8192


def dial(address: Address, port: int, timeout: float) -> socket.socket:
    """Connect to exactly this address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect((str(address), port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def tls_context() -> ssl.SSLContext:
    """Return what verifies servers: the system's authorities, names checked, HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(
    addresses: tuple[Address, ...], port: int, deadline: Deadline, dial_to: Dial = dial
) -> socket.socket:
    """Connect to the first address that answers.

    Raises `FetchError`: `timeout` or `deadline`, or `connection` if all refused.
    """
    failure = FetchError("connection", "no address to connect to")
    for address in addresses:
        try:
            return dial_to(address, port, deadline.wait())
        except TimeoutError:
            failure = deadline.expired("connecting")
            if failure.reason == "deadline":
                raise failure from None
        except OSError as error:
            failure = FetchError("connection", _text(error))
    raise failure


def secure(
    sock: socket.socket, name: str, context: ssl.SSLContext, deadline: Deadline
) -> socket.socket:
    """Return the connection under TLS, its certificate checked against the host's name.

    Raises `FetchError`: `tls`, `reset`, `timeout` or `deadline`; the socket is closed then.
    """
    try:
        sock.settimeout(deadline.wait())
        return context.wrap_socket(sock, server_hostname=name)
    except TimeoutError:
        sock.close()
        raise deadline.expired("TLS handshake") from None
    except ssl.SSLEOFError as error:
        sock.close()
        raise FetchError("reset", "closed during the TLS handshake") from error
    except (ssl.SSLError, ssl.CertificateError, ValueError) as error:
        sock.close()
        raise FetchError("tls", _text(error)) from error
    except OSError as error:
        sock.close()
        raise FetchError("reset", _text(error)) from error
    except BaseException:
        sock.close()
        raise


class _Lines(io.BufferedReader):
    """Reads the head of an answer line by line, each a whole header and within its bound.

    Headers folded over lines (obsolete since RFC 7230) would be joined to one without a bound, and
    `email` takes a bare carriage return for an end of line, and what follows headers for a body.
    """

    in_head = True

    def readline(self, size: int | None = -1, /) -> bytes:
        """Return a line; raises `FetchError` `bad_response` for one that no head should have."""
        if not self.in_head:
            return super().readline(size)
        line = super().readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise FetchError("bad_response", f"more than {MAX_LINE} bytes in a line of the head")
        if line[:1] in (b" ", b"\t"):
            raise FetchError("bad_response", "a header folded over lines")
        if b"\r" in line.rstrip(b"\r\n"):
            raise FetchError("bad_response", "a carriage return within a header")
        return line


class Wire(io.RawIOBase):
    """The receiving side of a connection: counts bytes, and waits no longer than the deadline.

    It is a reader for `http.client.HTTPResponse`, which asks for it through `makefile`; one byte
    at a time, as from a slow drip, each wait is within what is left of the deadline.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._timeout = sock.gettimeout()
        self._received = 0
        self._limit = MAX_HEAD
        self._error = FetchError("bad_response", f"more than {MAX_HEAD} bytes of headers")
        self._lines = _Lines(self, 65_536)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return this as the buffered file that `HTTPResponse` reads."""
        return self._lines

    def allow_body(self, limit: int) -> None:
        """Lift the limit to a body of `limit` bytes, and as much as chunked framing may take."""
        self._lines.in_head = False
        self._limit = self._received + limit + limit // 8 + MAX_HEAD
        self._error = FetchError("too_large", "more bytes on the wire than max_bytes")

    def send(self, data: bytes) -> None:
        """Send all of a request; raises `FetchError` as reading does."""
        try:
            self._set_timeout()
            self._sock.sendall(data)
        except TimeoutError:
            raise self._deadline.expired("sending") from None
        except OSError as error:
            raise FetchError("reset", _text(error)) from error

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Receive some bytes; raises `FetchError`: `timeout`, `deadline`, `reset`, a limit's."""
        try:
            self._set_timeout()
            count = self._sock.recv_into(buffer)
        except TimeoutError:
            raise self._deadline.expired("reading") from None
        except OSError as error:
            raise FetchError("reset", _text(error)) from error
        self._received += count
        if self._received > self._limit:
            raise self._error
        return count

    def _set_timeout(self) -> None:
        """Bound the next operation; a system call only where the bound has changed."""
        timeout = self._deadline.wait()
        if timeout != self._timeout:
            self._sock.settimeout(timeout)
            self._timeout = timeout


def _text(error: Exception) -> str:
    """Return what the system says, which names neither the URL nor anything the server chose."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "TLS error")
    return str(getattr(error, "strerror", None) or type(error).__name__)
