"""The order of work for one URL: what `urllib.request.urlopen` does while a part is fetched."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final
from urllib.parse import quote, urljoin
from urllib.request import Request

from pipeline.fetch.addresses import Address, is_public
from pipeline.fetch.answer import Answer
from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.connection import Dial, connect, dial, secure, tls_context
from pipeline.fetch.deadline import Deadline
from pipeline.fetch.dns import Lookup, Resolver, system_lookup
from pipeline.fetch.errors import FetchError
from pipeline.fetch.exchange import Received, exchange, request_bytes
from pipeline.fetch.hosts import Hosts
from pipeline.fetch.local import read_local
from pipeline.fetch.opt_out import opted_out
from pipeline.fetch.retry import Retries
from pipeline.fetch.robots import MAX_ROBOTS, Robots
from pipeline.fetch.targets import BAD_PORTS, Target, normal_host, parse

# What img2dataset sends, so that hosts treat both alike.
_BROWSER: Final = "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:72.0) Gecko/20100101 Firefox/72.0"
_IMG2DATASET: Final = "https://github.com/rom1504/img2dataset"
_UNANSWERED: Final = {"dns", "dns_temporary", "connection", "timeout", "deadline", "reset"}


class PolicyOpener:
    """Fetches http and https URLs under a policy; takes the place of urllib's opener.

    The environment's proxies are not used: they would connect where nobody checked. Tests pass
    their own `lookup` and `dial_to`, which is how they make names and public addresses.
    """

    def __init__(
        self,
        config: FetchConfig,
        blocklist: Blocklist | None = None,
        local_root: str | None = None,
        *,
        lookup: Lookup = system_lookup,
        dial_to: Dial = dial,
    ) -> None:
        self._config = config
        self._blocklist = blocklist or Blocklist()
        self._local_root = local_root
        self._dial = dial_to
        self._resolver = Resolver(config.dns_cache_s, lookup)
        self._hosts = Hosts(config)
        self._listed = frozenset(map(_listed_origin, config.allow_private_hosts))
        self._tls = tls_context()
        self._agent = user_agent(config)
        self._robots = None
        if config.respect_robots_txt:
            self._robots = Robots(config.user_agent_token, self._read_robots)

    def open(self, fullurl: str | Request, data: Any = None, timeout: Any = None) -> Answer:
        """Return the whole body at a URL; `timeout` bounds one socket operation [s].

        Raises `FetchError` with the reason of the last try.
        """
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        if data is not None or (isinstance(fullurl, Request) and fullurl.get_method() != "GET"):
            raise ValueError("the fetch policy knows GET only")
        if url[:5].lower() == "file:":
            return read_local(url, self._local_root, self._config.max_bytes)
        target = parse(url)
        wait = float(timeout) if isinstance(timeout, (int, float)) else self._config.timeout
        retries = Retries(self._config.retries, self._config.backoff_s, self._config.retry_budget_s)
        first = True
        while True:
            try:
                return self._follow(target, Deadline(self._config.deadline_s, wait), first)
            except FetchError as error:
                pause = retries.wait_after(error)
                if pause is None:
                    raise
            time.sleep(pause)
            first = False

    def _follow(self, target: Target, deadline: Deadline, first: bool) -> Answer:
        """Try a URL and where it redirects to; everything is checked anew at each step."""
        seen: set[str] = set()
        while (url := target.url) not in seen and len(seen) <= self._config.max_redirects:
            seen.add(url)
            if self._robots is not None:
                self._check(target)
                self._robots.check(target, deadline)
            received = self._receive(target, deadline, first, self._config.max_bytes)
            self._check_opt_out(received)
            if received.location is None:
                return Answer(received.body, received.headers, url, received.status)
            target = _redirected(target, received.location)
        raise FetchError("too_many_redirects", "in a loop, or more than max_redirects")

    def _check_opt_out(self, received: Received) -> None:
        values = received.headers.get_all("X-Robots-Tag", [])
        if opted_out(values, self._config.user_agent_token, self._config.respect_opt_out):
            raise FetchError("opted_out", "the X-Robots-Tag header disallows use")

    def _check(self, target: Target) -> bool:
        """Raise `FetchError` if policy forbids the target; return whether the config lists it."""
        self._blocklist.check(target)
        listed = not self._listed.isdisjoint({target.origin, (target.host, None)})
        if target.port in BAD_PORTS and not listed:
            raise FetchError("bad_port", "a port that browsers refuse too")
        return listed

    def _addresses(self, target: Target, deadline: Deadline) -> tuple[Address, ...]:
        """Return what may be connected to for a target; it is connected to without asking again."""
        listed = self._check(target)
        if target.address is not None:
            found: tuple[Address, ...] = (target.address,)
        else:
            found = self._resolver.resolve(target.host, deadline)
        allowed = found if listed else tuple(filter(is_public, found))
        if not allowed:
            raise FetchError("private_address", "no public address, and not allow_private_hosts")
        return allowed

    def _receive(
        self, target: Target, deadline: Deadline, first: bool, limit: int, cut: bool = False
    ) -> Received:
        """Make one request in its host's turn, and tell the host's record how it went."""
        with self._hosts.turn(target.origin, deadline.waited) as waited:
            deadline.extend(waited)
            began = time.monotonic()
            # Whoever redirects late must not have the next host counted as silent.
            counts = first and deadline.ample
            answers: list[None] = []

            def answered() -> None:
                answers.append(None)
                self._hosts.answered(target.origin)

            try:
                return self._request(target, deadline, limit, answered, cut)
            except FetchError as error:
                # Once per URL: what a few slow URLs' retries do says nothing new of the host.
                if counts and not answers and error.reason in _UNANSWERED:
                    self._hosts.unanswered(target.origin, began)
                if error.retry_after and error.retry_after <= self._config.retry_budget_s:
                    self._hosts.pause(target.origin, error.retry_after)
                raise

    def _request(
        self,
        target: Target,
        deadline: Deadline,
        limit: int,
        answered: Callable[[], None],
        cut: bool,
    ) -> Received:
        addresses = self._addresses(target, deadline)
        with closing(connect(addresses, target.port, deadline, self._dial)) as plain:
            request = request_bytes(target, self._agent)
            if target.scheme == "http":
                return exchange(plain, request, deadline, limit, answered, cut=cut)
            with closing(secure(plain, target.host, self._tls, deadline)) as sock:
                return exchange(sock, request, deadline, limit, answered, cut=cut)

    def _read_robots(self, target: Target, deadline: Deadline) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            received = self._receive(target, deadline, True, MAX_ROBOTS, cut=True)
            if received.location is None:
                return received.body
            target = _redirected(target, received.location)
        raise FetchError("bad_redirect", "robots.txt redirects without end")


def user_agent(config: FetchConfig) -> str:
    """Return the User-Agent header: img2dataset's, with our token and contact."""
    if config.user_agent_token is None:
        return _BROWSER
    contact = config.contact_url or _IMG2DATASET
    return f"{_BROWSER} (compatible; {config.user_agent_token}; +{contact})"


def _listed_origin(entry: str) -> tuple[str, int | None]:
    host, _, port = entry.rpartition(":")
    if host.startswith("["):
        host = parse(f"http://{host}/").host
    return normal_host(host), None if port == "*" else int(port)


def _redirected(target: Target, location: str) -> Target:
    """Return where a Location header leads; spaces and other letters in it are percent-encoded."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in location):
        raise FetchError("bad_redirect", "control characters in the Location header")
    # http.client reads headers as Latin-1, so this gives back the bytes that were sent.
    sent = quote(location.strip(), safe=string.punctuation, encoding="iso-8859-1")
    try:
        return parse(urljoin(target.url, sent))
    except ValueError as error:
        raise FetchError("bad_redirect", "malformed Location header") from error
