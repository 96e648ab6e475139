"""Blocklists hold in every spelling of what they name; an entry that names nothing is refused."""

from __future__ import annotations

import pytest

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.errors import FetchError
from pipeline.fetch.targets import parse
from pipeline.settings import ConfigError


@pytest.mark.parametrize(
    ("listed", "url", "reason"),
    [
        ("example.com", "http://example.com/", "blocked_host"),
        ("example.com", "https://img.cdn.EXAMPLE.com.:8080/", "blocked_host"),
        (" Example.com. ", "http://example.com/", "blocked_host"),
        ("bücher.example", "http://xn--bcher-kva.example/", "blocked_host"),
        ("[2001:db8::1]", "http://[2001:db8::1]/", "blocked_host"),
        ("1.2.3.4", "http://1.2.3.4/", "blocked_host"),
        ("example.com", "http://notexample.com/", None),
        ("img.example.com", "http://example.com/", None),
        ("http://example.com:80/a#b", "http://EXAMPLE.com/a", "blocked_url"),
        ("http://example.com/ä", "http://example.com/%C3%A4", "blocked_url"),
        ("http://example.com/a", "http://example.com/a?b", None),
        ("http://example.com/a", "https://example.com/a", "blocked_url"),
        (".example.com", "http://a.example.com/", "blocked_host"),
        ("*.example.com", "http://example.com/", "blocked_host"),
        ("2606:4700:0:0::1111", "http://[2606:4700::1111]/", "blocked_host"),
        ("[2001:0DB8:0::1]", "http://[2001:db8::1]/", "blocked_host"),
        ("http://h/a.jpg", "http://h/%61.jpg", "blocked_url"),
        ("http://h/%61.jpg", "http://h/a.jpg", "blocked_url"),
        ("http://h/a%2Fb", "http://h/a%2fb", "blocked_url"),
        ("http://h/a%2Fb", "http://h/a/b", None),
        ("http://h/%2561", "http://h/a", None),
        ("http://h/a.jpg", "http://h/x/../a.jpg", "blocked_url"),
        ("http://h/a.jpg", "http://h/./%2e%2e/a.jpg?", "blocked_url"),
        ("http://h/x/../a/?q", "http://h/a/./?%71", "blocked_url"),
        ("http://h/a?../b", "http://h/b", None),
        ("http://h/a b.jpg", "http://h/a%20b.jpg", "blocked_url"),
        ('http://h/"a|b"', "http://h/%22a%7cb%22", "blocked_url"),
        ("https://h:443/a", "http://h/a", "blocked_url"),
        ("http://h:443/a", "http://h/a", None),
    ],
)
def test_blocklist(listed: str, url: str, reason: str | None) -> None:
    entries = frozenset({listed})
    block = Blocklist(urls=entries) if "://" in listed else Blocklist(hosts=entries)
    try:
        block.check(parse(url))
    except FetchError as error:
        assert error.reason == reason
    else:
        assert reason is None


def test_equal_blocklists_are_equal_however_they_are_spelt() -> None:
    assert Blocklist(frozenset({"A.b."})) == Blocklist(frozenset({"a.b"}))


@pytest.mark.parametrize(
    "entry",
    [
        "http://example.com", "example.com/", "example.com:443", "example.com..", "a b", "", "*",
        "*.*.com", "..a", "a.*.com", "me@example.com", "127.1", "[::1]:80", "fe80::1%eth0", "1::g",
    ],
)  # fmt: skip
def test_a_host_that_could_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"filter\.block\.hosts") as caught:
        Blocklist(hosts=frozenset({entry}))
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize(
    "entry", ["", "h/a.jpg", "//h/a", "ftp://h/a", "http://u:p@h/a", "http://h:x/", "http://127.1/"]
)
def test_a_url_that_could_match_nothing_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"filter\.block\.urls") as caught:
        Blocklist(urls=frozenset({entry}))
    assert repr(entry) in str(caught.value)


def test_a_list_of_what_a_list_holds_is_the_same() -> None:
    once = Blocklist(frozenset({"*.H.", "1:0::2"}), frozenset({"https://h:443/%61", "http://h/é"}))
    assert Blocklist(once.hosts, once.urls) == once
