"""One request and its answer: status, headers and a body within its bounds."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from typing import Final

from pipeline.fetch.connection import Wire
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.decoding import decode
from pipeline.fetch.errors import FetchError
from pipeline.fetch.retry import seconds_asked
from pipeline.fetch.targets import Target

_PIECE: Final = 65_536
_REDIRECTS: Final = {301, 302, 303, 307, 308}
# 204 and 205 have no body, and a part of one is no answer to who asked for all of it.
_BODILESS: Final = {204, 205, 206}
_BY_STATUS: Final = {
    401: "forbidden",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    410: "gone",
    429: "rate_limited",
    451: "forbidden",
}


@dataclass(frozen=True)
class Received:
    """An answer: a whole body, or where to look instead."""

    status: int
    headers: HTTPMessage
    body: bytes
    location: str | None


def request_bytes(target: Target, user_agent: str) -> bytes:
    """Return the request; like urllib's, it asks for an uncompressed body and one answer."""
    return (
        f"GET {target.path} HTTP/1.1\r\nAccept-Encoding: identity\r\nHost: {target.authority}\r\n"
        f"User-Agent: {user_agent}\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


def exchange(
    sock: socket.socket,
    request: bytes,
    deadline: Deadline,
    max_bytes: int,
    answered: Callable[[], None],
    *,
    cut: bool = False,
) -> Received:
    """Send a request and return what came back, read to its end unless it is a redirect.

    `answered` is called once status and headers are there. With `cut`, a body longer than
    `max_bytes` is cut there and no error.

    Raises `FetchError`: a reason for the status (`not_found`, `http_5xx`, …), `too_large`,
    `bad_encoding`, `bad_response` for what is not HTTP, `reset`, `timeout`, `deadline`.
    """
    wire = Wire(sock, deadline)
    wire.send(request)
    response = HTTPResponse(wire, method="GET")  # type: ignore[arg-type]
    try:
        response.begin()
        answered()
        deadline.wait()  # what parsing took counts too
        headers, status = response.headers, response.status
        if status in _REDIRECTS and headers.get("Location") is not None:
            return Received(status, headers, b"", headers["Location"])
        _check_status(status, headers)
        wire.allow_body(max_bytes)
        body = _read(response, max_bytes, cut)
    except http.client.IncompleteRead as error:
        raise FetchError("reset", "the body ended early") from error
    except http.client.RemoteDisconnected as error:
        raise FetchError("reset", "closed without an answer") from error
    except (http.client.HTTPException, ValueError, OverflowError, MemoryError) as error:
        raise FetchError("bad_response", type(error).__name__) from error
    finally:
        response.close()
    coding = ",".join(headers.get_all("Content-Encoding", []))
    if coding:
        body = decode(body, coding, max_bytes)
        deadline.wait()
    return Received(status, headers, body, None)


def _check_status(status: int, headers: HTTPMessage) -> None:
    if 200 <= status < 300 and status not in _BODILESS:
        return
    if status in _BY_STATUS:
        reason = _BY_STATUS[status]
    elif 300 <= status < 400:
        reason = "bad_redirect"
    else:
        reason = {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "bad_response")
    raise FetchError(reason, f"HTTP {status}", seconds_asked(headers.get("Retry-After")))


def _read(response: HTTPResponse, max_bytes: int, cut: bool) -> bytes:
    """Return the body; `max_bytes` holds before a byte is read where the server says the size."""
    if response.length is not None and not cut:
        if response.length > max_bytes:
            raise FetchError("too_large", "Content-Length is over max_bytes")
        return response.read()
    pieces, size = [], 0
    while piece := response.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            if cut:
                break
            raise FetchError("too_large", "the body is longer than max_bytes")
    return b"".join(pieces)[:max_bytes]
