"""Everything a hostile web does, by name: the URL to fetch, and the reason it must end with."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import Final

from tests.pipeline.fetch.web import (
    Behaviour,
    HostileWeb,
    answers,
    drips,
    endless,
    head,
    resets,
    says,
    stalls,
)

MAX_BYTES: Final = 200_000
CHUNKED: Final = "Transfer-Encoding: chunked"


@dataclass(frozen=True)
class Attack:
    """`url` may hold `{web}` and `{canary}`, ports; `served` is what the web does at it."""

    #: None: the body comes through, and is harmless.
    reason: str | None
    url: str = ""
    served: Behaviour | None = None

    def prepare(self, name: str, web: HostileWeb, canary: int) -> str:
        """Return the URL, with whatever it needs being served."""
        if self.served is not None:
            return web.serve("/" + name.replace(" ", "-"), self.served)
        if self.url.startswith("redirect "):
            where = self.url.removeprefix("redirect ").format(web=web.port, canary=canary)
            moved = says(head(f"Location: {where}", "Content-Length: 0", status="302 Found"))
            return web.serve("/" + name.replace(" ", "-"), moved)
        return self.url.format(web=web.port, canary=canary)


def _bomb(size: int, window: int) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, window)
    zeros = bytes(100_000)
    parts = [squeeze.compress(zeros) for _ in range(size // len(zeros))]
    return b"".join(parts) + squeeze.flush()


def _encoded(coding: str, body: bytes) -> Behaviour:
    return answers(body, f"Content-Encoding: {coding}")


def _chunks(data: bytes) -> Behaviour:
    return says(head(CHUNKED) + data)


_FOLDED: Final = ['Content-Type: multipart/x;a="', *(" " + ";" * 4000 for _ in range(60))]
_GZIP: Final = _bomb(100_000_000, 31)
assert len(_GZIP) < MAX_BYTES

SERVED: Final[dict[str, Attack]] = {
    name: Attack(reason, served=behaviour)
    for name, (reason, behaviour) in {
        # time
        "body that drips": ("deadline", drips(head("Content-Length: 99999"), b"x")),
        "chunked body that drips": ("deadline", drips(head(CHUNKED), b"1\r\nx\r\n")),
        "headers that drip": ("deadline", drips(b"HTTP/1.1 200 OK\r\nX: ", b"x")),
        "status line that drips": ("deadline", drips(b"HTTP/1.1 200 ", b"x")),
        "interim answers that drip": (
            "deadline",
            drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ),
        "silence": ("timeout", stalls(b"")),
        "silence after the headers": ("timeout", stalls(head("Content-Length: 10"))),
        "silence amid the body": ("timeout", stalls(head("Content-Length: 10") + b"12345")),
        # size
        "endless body": ("too_large", endless(head(), bytes(50_000))),
        "endless chunks": (
            "too_large",
            endless(head(CHUNKED), b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        ),
        "endless trailer": ("too_large", endless(head(CHUNKED) + b"0\r\n", b"X-More: yes\r\n")),
        "chunk extensions": (
            "too_large",
            endless(head(CHUNKED), b"1;" + b"e" * 9000 + b"\r\nx\r\n"),
        ),
        "endless header line": ("bad_response", endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 9000)),
        "endless headers": ("bad_response", endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 50)),
        "endless status line": ("bad_response", endless(b"HTTP/1.1 200 ", b"x" * 9000)),
        "endless interim answers": (
            "bad_response",
            endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 99),
        ),
        "flood of cookies": (
            "bad_response",
            answers(b"x", *(f"Set-Cookie: {n}={'y' * 200}" for n in range(5000))),
        ),
        "header folded to 240 kB": (
            "bad_response",
            answers(b"x", *_FOLDED),
        ),
        "header of 60 kB": ("bad_response", answers(b"x", f"Content-Type: a{';' * 60_000}")),
        "headers between carriage returns": (
            "bad_response",
            answers(b"x", *("X: \r" + _FOLDED[0] + "\r\r--a\rb" for _ in range(9))),
        ),
        "length of an exabyte": ("too_large", stalls(head("Content-Length: 1000000000000000000"))),
        "length just over the cap": ("too_large", stalls(head(f"Content-Length: {MAX_BYTES + 1}"))),
        "length with five thousand digits": (
            None,
            says(head("Content-Length: " + "9" * 5000) + b"body"),
        ),
        # compression
        "gzip bomb": ("too_large", _encoded("gzip", _GZIP)),
        "deflate bomb": ("too_large", _encoded("deflate", _bomb(100_000_000, 15))),
        "bare deflate bomb": ("too_large", _encoded("deflate", _bomb(100_000_000, -15))),
        "bomb within a bomb": ("bad_encoding", _encoded("gzip, gzip", gzip.compress(_GZIP))),
        "gzip cut short": ("bad_encoding", _encoded("gzip", gzip.compress(bytes(9999))[:-9])),
        "gzip with damage": ("bad_encoding", _encoded("gzip", b"\x1f\x8b\x08" + b"!" * 40)),
        "brotli": ("bad_encoding", _encoded("br", b"\x0b\x02\x80")),
        # framing
        "body shorter than its length": ("reset", says(head("Content-Length: 100") + b"short")),
        "body longer than its length": (
            None,
            says(head("Content-Length: 4") + b"body" + b"!" * 999),
        ),
        "two lengths": (None, says(head("Content-Length: 4", "Content-Length: 999") + b"body")),
        "length and chunks": (
            None,
            says(head("Content-Length: 999", CHUNKED) + b"4\r\nbody\r\n0\r\n\r\n"),
        ),
        "negative length": (None, says(head("Content-Length: -1") + b"body")),
        "negative chunk": ("bad_response", _chunks(b"-5\r\nhello\r\n0\r\n\r\n")),
        "chunk of 2^64": ("reset", _chunks(b"ffffffffffffffff\r\nbody")),
        "chunk size of a megabyte": ("bad_response", _chunks(b"0" * 1_000_000)),
        "chunk size that is no number": ("reset", _chunks(b"zz\r\nbody\r\n")),
        "reset amid the body": ("reset", resets(head("Content-Length: 100") + b"part")),
        "reset at once": ("reset", resets(b"")),
        "close without an answer": ("reset", says(b"")),
        "no HTTP": ("bad_response", says(b"SSH-2.0-OpenSSH_9.6\r\n")),
        "HTTP/9": ("bad_response", says(b"HTTP/9.9 200 OK\r\n\r\nbody")),
        "binary garbage": ("bad_response", says(bytes(range(256)) * 4 + b"\r\n\r\n")),
        "split answer": (
            None,
            says(head("X: a", "Content-Length: 4") + b"body" + head("Location: http://10.0.0.1/")),
        ),
        "empty body": (None, answers(b"")),
        # statuses
        "204": ("bad_response", says(head(status="204 No Content"))),
        "206 unasked": (
            "bad_response",
            answers(b"half", "Content-Range: bytes 0-3/8", status="206 Partial"),
        ),
        "304 unasked": ("bad_redirect", says(head(status="304 Not Modified"))),
        "status 999": ("bad_response", answers(b"", status="999 Denied")),
        "status without end": ("bad_response", answers(b"", status="20000 OK")),
        "502": ("http_5xx", answers(b"", status="502 Bad Gateway")),
        "redirect without a location": ("bad_redirect", answers(b"", status="302 Found")),
        "redirect with an endless body": (
            "private_address",
            endless(head("Location: http://10.0.0.1/", status="302 Found"), bytes(9000)),
        ),
    }.items()
}

_PRIVATE_HOSTS: Final = {
    "loopback": "127.0.0.1",
    "loopback elsewhere in its network": "127.8.9.10",
    "all zeros": "0.0.0.0",
    "decimal number": "2130706433",
    "octal numbers": "0177.0.0.1",
    "hexadecimal numbers": "0x7f.0x0.0x0.0x1",
    "hexadecimal number": "0x7f000001",
    "short form": "127.1",
    "zero": "0",
    "leading zeros": "127.000.000.001",
    "five numbers": "127.0.0.0.1",
    "number out of range": "127.0.0.256",
    "end dot": "127.0.0.1.",
    "full-width digits": "１２７.0.0.1",
    "ideographic dots": "127。0。0。1",
    "localhost": "localhost",
    "LOCALHOST with an end dot": "LOCALHOST.",
    "homograph of localhost": "ⅼocalhost",
    "cloud metadata": "169.254.169.254",
    "private 10": "10.0.0.1",
    "private 172": "172.31.255.255",
    "private 192": "192.168.1.1",
    "carrier-grade NAT": "100.64.0.1",
    "benchmarking": "198.18.0.1",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 loopback": "[::1]",
    "IPv6 unspecified": "[::]",
    "IPv6 loopback, long": "[0:0:0:0:0:0:0:1]",
    "IPv4-mapped": "[::ffff:127.0.0.1]",
    "IPv4-compatible": "[::127.0.0.1]",
    "NAT64": "[64:ff9b::7f00:1]",
    "NAT64, local": "[64:ff9b:1::7f00:1]",
    "6to4": "[2002:7f00:1::1]",
    "Teredo": "[2001:0:7f00:1::1]",
    "IPv6 link-local": "[fe80::1]",
    "IPv6 unique local": "[fd00::1]",
    "IPv6 site-local": "[fec0::1]",
    "IPv6 multicast": "[ff02::1]",
}

ADDRESSES: Final = {
    name: Attack("private_address", f"http://{host}:{{canary}}/x.jpg")
    for name, host in _PRIVATE_HOSTS.items()
}

REDIRECTS: Final = {
    f"redirect to {name}": Attack(reason, f"redirect {where}")
    for name, reason, where in [
        *(
            (name, "private_address", f"http://{host}:{{canary}}/x.jpg")
            for name, host in _PRIVATE_HOSTS.items()
            if host.isascii()
        ),
        ("another port", "private_address", "http://127.0.0.1:{canary}/"),
        ("another port, without scheme", "private_address", "//127.0.0.1:{canary}/"),
        ("itself", "too_many_redirects", ""),
        ("a file", "bad_scheme", "file:///etc/passwd"),
        ("ftp", "bad_scheme", "ftp://127.0.0.1:{canary}/x"),
        ("data", "bad_scheme", "data:image/png;base64,iVBORw0KGgo="),
        ("gopher", "bad_scheme", "gopher://127.0.0.1:{canary}/_GET"),
        ("javascript", "bad_scheme", "javascript:alert(1)"),
        ("mail", "bad_port", "http://127.0.0.1:25/"),
        ("a name and password", "bad_url", "http://a:b@127.0.0.1:{web}/"),
        ("a port out of range", "bad_url", "http://127.0.0.1:99999/"),
        ("a broken bracket", "bad_redirect", "http://[::1/"),
        ("eight thousand letters", "bad_url", "/" + "x" * 8000),
    ]
}

URLS: Final = {
    name: Attack(reason, url)
    for name, (reason, url) in {
        "file": ("bad_scheme", "file:///etc/passwd"),
        "file in capitals": ("bad_scheme", "FILE:///etc/passwd"),
        "ftp": ("bad_scheme", "ftp://127.0.0.1:{canary}/x.jpg"),
        "data": ("bad_scheme", "data:image/png;base64,iVBORw0KGgo="),
        "gopher": ("bad_scheme", "gopher://127.0.0.1:{canary}/_GET"),
        "port 0": ("bad_port", "http://127.0.0.1:0/"),
        "port 22": ("bad_port", "http://127.0.0.1:22/"),
        "port 6667": ("bad_port", "http://127.0.0.1:6667/"),
        "port 99999": ("bad_url", "http://127.0.0.1:99999/"),
        "two ports": ("bad_url", "http://127.0.0.1:{web}:{canary}/"),
        "no host": ("bad_url", "http:///x.jpg"),
        "zone": ("bad_url", "http://[fe80::1%25lo]:{canary}/"),
        "broken bracket": ("bad_url", "http://[::1/"),
        "name before the host": ("bad_url", "http://127.0.0.1:{web}@127.0.0.1:{canary}/"),
        "name and password": ("bad_url", "http://user:secret@127.0.0.1:{web}/"),
        "backslash": ("bad_url", "http://127.0.0.1:{web}\\@127.0.0.1:{canary}/"),
        "percent in the host": ("bad_url", "http://127%2e0.0.1:{canary}/"),
        "line break in the path": ("bad_url", "http://127.0.0.1:{web}/a\r\nX-Injected: 1"),
        "line break in the host": ("bad_url", "http://127.0.0.1:{web}\r\n/a"),
        "tab in the scheme": ("bad_url", "ht\ttp://127.0.0.1:{canary}/"),
        "NUL": ("bad_url", "http://127.0.0.1:{web}/a\0.jpg"),
        "space": ("bad_url", "http://127.0.0.1:{web}/a HTTP/1.1 b"),
        "nine thousand letters": ("bad_url", "http://127.0.0.1:{web}/" + "x" * 9000),
        "label of 70 letters": ("bad_url", "http://" + "x" * 70 + ".example/"),
    }.items()
}

#: All that need nothing but loopback.
ATTACKS: Final = {**SERVED, **ADDRESSES, **REDIRECTS, **URLS}

assert len(ATTACKS) == sum(map(len, (SERVED, ADDRESSES, REDIRECTS, URLS)))
