"""Hosts and URLs that must not be fetched: takedowns and opt-outs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pipeline.fetch.errors import FetchError
from pipeline.fetch.spelling import normal_path
from pipeline.fetch.targets import Target, parse
from pipeline.settings import ConfigError


@dataclass(frozen=True)
class Blocklist:
    """Names of hosts, each standing for its subdomains too, and exact URLs.

    Both are brought to the spelling in which targets are compared: `*.EXAMPLE.com.` blocks
    `img.example.com`; of a URL, scheme, fragment, default port, letter case of the host, dot
    segments and needless percent-encoding don't matter.

    Raises `ConfigError` for an entry that could match nothing.
    """

    hosts: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", frozenset(map(_host, self.hosts)))
        object.__setattr__(self, "urls", frozenset(map(_url, self.urls)))

    def check(self, target: Target) -> None:
        """Raise `FetchError` `blocked_host` or `blocked_url` if the target is on the list."""
        if self.hosts and self._has_host(target.host):
            raise FetchError("blocked_host", "the host is on the blocklist")
        if self.urls and _key(target) in self.urls:
            raise FetchError("blocked_url", "the URL is on the blocklist")

    def _has_host(self, host: str) -> bool:
        while host:
            if host in self.hosts:
                return True
            host = host.partition(".")[2]
        return False


def _host(entry: str) -> str:
    host = entry.strip()
    host = host[1:-1] if host[:1] + host[-1:] == "[]" else host
    host = host.removeprefix("*.").removeprefix(".")
    try:
        if not set("/?#@%[]*").isdisjoint(host):  # % would begin an address's zone
            raise ValueError
        if ":" in host:
            return str(ipaddress.IPv6Address(host))
        return parse(f"http://{host}/").host
    except (FetchError, ValueError):
        raise ConfigError(
            f"filter.block.hosts: {entry!r} is no host name or address, such as example.com (its "
            "subdomains are blocked too), without scheme, port and path"
        ) from None


def _url(entry: str) -> str:
    url = entry.strip().replace(" ", "%20")
    try:
        return _key(parse(url))
    except FetchError as error:
        raise ConfigError(
            f"filter.block.urls: {entry!r} is no URL that could be fetched, such as "
            f"https://example.com/a.jpg ({str(error).partition(': ')[2]})"
        ) from None


def _key(target: Target) -> str:
    """Return a URL as it is compared: `https://h:443/%61/../b` and `http://h/b` are one."""
    return f"http://{target.authority}{normal_path(target.path)}"
