"""Hosts and URLs that must not be fetched: takedowns and opt-outs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.fetch.errors import FetchError
from pipeline.fetch.targets import Target, normal_host, parse


@dataclass(frozen=True)
class Blocklist:
    """Names of hosts, each standing for its subdomains too, and exact URLs.

    Both are brought to the spelling in which targets are compared: `EXAMPLE.com.` blocks
    `img.example.com`; a URL's fragment, default port and letter case of the host don't matter.
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
        if target.url in self.urls:
            raise FetchError("blocked_url", "the URL is on the blocklist")

    def _has_host(self, host: str) -> bool:
        while host:
            if host in self.hosts:
                return True
            host = host.partition(".")[2]
        return False


def _host(host: str) -> str:
    try:
        return normal_host(host.strip().strip("[]"))
    except FetchError:
        return host


def _url(url: str) -> str:
    try:
        return parse(url.strip()).url
    except FetchError:  # it is refused for that reason whenever it is met
        return url
