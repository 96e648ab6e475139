"""A chat-completions server on loopback that speaks the protocol, and misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXT = "A red dog runs on the grass. It is a sunny day."


@dataclass(frozen=True)
class Asked:
    """A request as it came: the image's bytes, the prompt, the whole body, the headers."""

    image: bytes
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What to send: raw bytes, or a fault by its name: close, cut, drip, drip_headers, silent."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


def completion(content: Any = TEXT, finish_reason: Any = "stop", **message: Any) -> Reply:
    """Return a well-formed reply with some content."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return reply({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


def reply(value: Any, status: int = 200, **headers: str) -> Reply:
    """Return JSON as a reply."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **names})


@dataclass
class ChatServer:
    """`answer(asked, number of the request)` decides; `asked` is what came so far."""

    port: int = 0
    answer: Callable[[Asked, int], Reply] = lambda asked, number: completion()
    asked: list[Asked] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ChatServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        picture, text = body["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        asked = Asked(data, text["text"], body, dict(self.headers))
        with state.lock:
            state.asked.append(asked)
            state.paths.append(self.path)
            number = len(state.asked)
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            answer = state.answer(asked, number)
        finally:
            with state.lock:
                state.in_flight -= 1
        try:
            self._send(answer)
        except OSError:  # the client has had enough
            self.close_connection = True

    def _send(self, answer: Reply) -> None:
        if answer.fault == "close":
            self.close_connection = True
            return
        if answer.fault == "silent":
            self.server_state.release.wait(30)
            return
        if answer.fault == "drip_headers":
            self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.fault == "cut":
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
        elif answer.fault == "drip":
            self._drip(answer.body)
        else:
            self.wfile.write(answer.body)

    def _drip(self, data: bytes) -> None:
        self.close_connection = True
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server_state.release.wait(0.05):
                return


@contextmanager
def serving() -> Iterator[ChatServer]:
    """Serve until the block ends."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.daemon_threads = True
    state = ChatServer(server.server_port)
    handler.server_state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


def slow(seconds: float) -> Callable[[Asked, int], Reply]:
    """Return an answer that takes its time."""

    def answer(asked: Asked, number: int) -> Reply:
        time.sleep(seconds)
        return completion()

    return answer
