"""A URL taken apart once, strictly: what is connected to, asked for and compared."""

from __future__ import annotations

import ipaddress
import re
import string
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from pipeline.fetch.addresses import Address
from pipeline.fetch.errors import FetchError

#: Longest URL: what RFC 9110, section 4.1, asks every server to understand at least.
MAX_URL: Final = 8000
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# A last label that is a number makes the whole host one (WHATWG URL, "ends in a number"): C
# libraries read 127.1, 0177.0.0.1, 0x7f.1 and 2130706433 as addresses.
_NUMBER: Final = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")

#: Ports that no browser asks for HTTP (WHATWG Fetch, "bad port"): mail, shells, files, X11, IRC.
BAD_PORTS: Final = frozenset(
    (
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95,
        101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179,
        389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601,
        636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566,
        6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where a URL leads: `host` in lower case and IDNA, without a trailing dot or brackets."""

    scheme: str
    host: str
    port: int
    #: Path and query as sent: printable ASCII without spaces.
    path: str
    #: The address that the host is, if it is no name.
    address: Address | None

    @property
    def origin(self) -> tuple[str, int]:
        """Host and port, by which limits are kept."""
        return self.host, self.port

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port: the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL in one spelling, without its fragment."""
        return f"{self.scheme}://{self.authority}{self.path}"


def parse(url: str) -> Target:
    """Return the target of an http or https URL.

    Raises `FetchError`: `bad_scheme` for another scheme, `private_address` for a host that is an
    address in disguise, and `bad_url` for what is no sound URL, holds
    control characters, spaces or a password, or is longer than `MAX_URL`.
    """
    if len(url) > MAX_URL:
        raise FetchError("bad_url", f"longer than {MAX_URL} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        raise FetchError("bad_url", "control characters, spaces or backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise FetchError("bad_url", "malformed host or port") from error
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise FetchError("bad_scheme", f"{scheme[:20] or 'no scheme'} is not http or https")
    if "@" in parts.netloc:
        raise FetchError("bad_url", "a user name or password")
    query = f"?{parts.query}" if parts.query else ""
    path = quote((parts.path or "/") + query, safe=string.punctuation)
    host, address = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    return Target(scheme, host, _DEFAULT_PORTS[scheme] if port is None else port, path, address)


def normal_host(host: str) -> str:
    """Return a host name in the one spelling that is compared: lower case, IDNA, no end dot."""
    try:
        return host.encode("idna").decode().lower().removesuffix(".")
    except UnicodeError as error:
        raise FetchError("bad_url", "no such host name can exist") from error


def _host(written: str, bracketed: bool) -> tuple[str, Address | None]:
    """Return a host in its one spelling, and the address that it is, if it is no name."""
    if bracketed:
        try:
            literal = ipaddress.IPv6Address(written if "%" not in written else "")
        except ValueError as error:
            raise FetchError("bad_url", "no IPv6 address, or one with a zone") from error
        return str(literal), literal
    host = normal_host(written)
    if not _HOST.fullmatch(host):
        raise FetchError("bad_url", "no sound host name")
    if not _NUMBER.fullmatch(host):
        return host, None
    try:
        # Strict: four decimal numbers, no leading zeros.
        return host, ipaddress.IPv4Address(host)
    except ValueError as error:
        raise FetchError("private_address", "an address in disguise") from error
