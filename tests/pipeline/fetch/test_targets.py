"""URLs taken apart: one spelling for each, nothing that a server could read otherwise."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.errors import FetchError
from pipeline.fetch.targets import BAD_PORTS, parse


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("http://Example.COM", "http://example.com/"),
        ("HTTP://example.com.:80/a?b#c", "http://example.com/a?b"),
        ("https://example.com:443/%7Ea/../b", "https://example.com/%7Ea/../b"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("http://bücher.example/ä?ö=ü", "http://xn--bcher-kva.example/%C3%A4?%C3%B6=%C3%BC"),
        ("http://my_shop.example/'a'|[b]", "http://my_shop.example/'a'|[b]"),
        ("http://[2A00:1450::0001]:8080/x", "http://[2a00:1450::1]:8080/x"),
        ("http://1.2.3.4/x", "http://1.2.3.4/x"),
        ("http://1.2.3.example/x", "http://1.2.3.example/x"),
        ("http://example.com?q", "http://example.com/?q"),
    ],
)
def test_urls_have_one_spelling(url: str, spelling: str) -> None:
    assert parse(url).url == spelling
    assert parse(spelling).url == spelling


@given(
    st.text(max_size=40) | st.from_regex(r"https?://[a-z0-9.\[\]:@%\\/?#ä -]{0,40}", fullmatch=True)
)
def test_any_text_is_a_target_or_refused(url: str) -> None:
    try:
        target = parse(url)
    except FetchError as error:
        assert error.reason in {"bad_url", "bad_scheme", "private_address"}
        return
    assert re.fullmatch(r"/[!-~]*", target.path)
    assert re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", target.host)
    again = urlsplit(target.url)  # urllib sees the same host and port in what we made of it
    assert again.hostname == target.host
    assert (
        again.port or {"http": 80, "https": 443}[again.scheme]
    ) == target.port or not target.port
    assert parse(target.url) == target


def test_ports_of_the_web_are_not_bad() -> None:
    assert not BAD_PORTS & {80, 81, 443, 3000, 5000, 8000, 8080, 8443, 8888}
    assert {22, 25, 6379, 3306}.intersection(BAD_PORTS) == {22, 25}  # as in the Fetch standard
