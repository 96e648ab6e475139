"""`python -m pipeline.bench.photo_server FOLDER`: sends a folder's JPEGs until stdin is closed.

One process, one thread and no parsing beyond the path: a tenth of a millisecond per request. Prints
its port. Only for benches: it answers nothing but plain GET requests, on loopback.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from pipeline.sources.scenes.rows import HOST

_REQUEST = re.compile(rb"GET /(\d+)\.jpg HTTP/1\.[01]\r\n")


class _Sender(asyncio.Protocol):
    """Answers the first request of a connection and closes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._asked += data
        if b"\r\n\r\n" not in self._asked:
            return
        found = _REQUEST.match(self._asked)
        path = self._folder / f"{int(found[1])}.jpg" if found else None
        if path is None or not path.exists():
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            body = path.read_bytes()
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
            self._transport.write(f"HTTP/1.1 200 OK\r\n{head}Connection: close\r\n\r\n".encode())
            self._transport.write(body)
        self._transport.close()  # once everything is sent


async def _serve(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Sender(folder), HOST, 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
