"""A web server on loopback that serves images and fails in every way the web does."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.pipeline.runs import build_measured, free_port

# A loaded machine is no failure.
hypothesis_settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("unhurried")


def encode_image(kind: str = ".jpg", seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    """Return a small noisy image in the format that `kind`, an extension, names."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(kind, pixels)[1].tobytes())


@pytest.fixture(scope="session")
def image() -> Callable[..., bytes]:
    return encode_image


@dataclass
class Web:
    """Paths and what they answer: (status, headers, body), or a fault by its name."""

    port: int
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.pages[path] = (status, names, body)
        return self.base + path


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.web.requests.append((self.path, self.headers["User-Agent"]))
        if self.path == "/slow":
            self.web.release.wait(30)
        elif self.path == "/reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif self.path == "/garbage":
            self.wfile.write(b"no http\r\n\r\n")
        elif self.path != "/silent":
            status, headers, body = self.web.pages.get(self.path, (404, {}, b"gone"))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)


@pytest.fixture
def web() -> Iterator[Web]:
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.daemon_threads = True
    handler.web = Web(server.server_port)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield handler.web  # type: ignore[attr-defined]
    handler.web.release.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def ungoverned() -> Iterator[None]:
    """Give the process its own urllib opener back: `govern` leaves ours in place for good."""
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def port() -> int:
    """The port that small worlds are served on; part of their URLs, so of their shards."""
    return free_port()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """An undisturbed run of a small world; copy it before you change it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done, peak_kib = build_measured(folder, port)
    assert done.returncode == 0, done.stderr
    folder.with_name("peak_kib").write_text(str(peak_kib))
    return folder
