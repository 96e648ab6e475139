"""RFC 9309, its own examples among them: groups, longest match, wildcards, escapes; and bounds."""

from __future__ import annotations

import time

import pytest

from pipeline.fetch.robots_rules import MAX_RULES, MAX_TEXT, allows, parse_rules

# Section 5.1 of the RFC.
SIMPLE = b"""
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot

EOF
"""
# Section 5.2.
LONGEST = b"""
User-Agent: foobot
Allow: /example/page/
Disallow: /example/page/disallowed.gif
"""


@pytest.mark.parametrize(
    ("text", "agent", "path", "allowed"),
    [
        (SIMPLE, "other", "/a.gif", False),
        (SIMPLE, "other", "/a.gif?x", True),
        (SIMPLE, "other", "/example/x", False),
        (SIMPLE, None, "/example/x", False),
        (SIMPLE, "other", "/publications/x", True),
        (SIMPLE, "FooBot", "/x", False),
        (SIMPLE, "foobot", "/example/page.html", True),
        (SIMPLE, "foobot", "/example/allowed.gif", True),
        (SIMPLE, "barbot", "/example/page.html", False),
        (SIMPLE, "bazbot", "/example/page.html", False),
        (SIMPLE, "bazbot", "/example/a.gif", True),
        (SIMPLE, "quxbot", "/example/a.gif", True),
        (LONGEST, "foobot", "/example/page/x.gif", True),
        (LONGEST, "foobot", "/example/page/disallowed.gif", False),
        (b"", "bot", "/x", True),
        (b"User-agent: *\nDisallow:\n", "bot", "/x", True),
        # groups
        (b"User-agent: *\n\nDisallow: /\n", "bot", "/x", False),
        (b"\xef\xbb\xbfUser-agent: *\nDisallow: /\n", "bot", "/x", False),
        (b"User-agent: *\rDisallow: /\r", "bot", "/x", False),
        (b"user-agent : * # all\r\nDISALLOW : / # none\r\n", "bot", "/x", False),
        (b"User-agent: bot\nDisallow: /x\nUser-agent: BOT\nDisallow: /y", "bot", "/y", False),
        (b"User-agent: *\nDisallow: /x\nUser-agent: *\nDisallow: /y", "bot", "/x", False),
        (b"User-agent: bot/1.0\nDisallow: /\n", "bot", "/x", False),
        (b"User-agent: bot\nDisallow: /\n", "bot/2.0", "/x", False),
        (b"User-agent: botany\nDisallow: /\n", "bot", "/x", True),
        (b"User-agent: *\nSitemap: http://h/s\nDisallow: /\n", "bot", "/x", False),
        (b"User-agent: a\nCrawl-delay: 1\nUser-agent: bot\nDisallow: /\n", "bot", "/x", False),
        (b"User-agent: *\nDisallow: /\n\nUser-agent: bot\nAllow: /\n", "bot", "/x", True),
        (b"Disallow: /\n", "bot", "/x", True),
        # patterns
        (b"User-agent: *\nDisallow: /*.jpg$\n", "bot", "/a.jpg", False),
        (b"User-agent: *\nDisallow: /*.jpg$\n", "bot", "/a.jpg.png", True),
        (b"User-agent: *\nDisallow: /*.jpg$\n", "bot", "/a.jpg/b.jpg", False),
        (b"User-agent: *\nDisallow: /a*a$\n", "bot", "/a", True),
        (b"User-agent: *\nDisallow: /*/private/\n", "bot", "/a/private/x", False),
        (b"User-agent: *\nDisallow: /a*b*c\n", "bot", "/acb", True),
        (b"User-agent: *\nDisallow: *\n", "bot", "/x", False),
        (b"User-agent: *\nDisallow: private\n", "bot", "/private", False),
        (b"User-agent: *\nDisallow: /$\n", "bot", "/x", True),
        (b"User-agent: *\nDisallow: /$\n", "bot", "/", False),
        (b"User-agent: *\nAllow: /\nDisallow: /private/\n", "bot", "/private/x", False),
        (b"User-agent: *\nDisallow: /page\nAllow: /page\n", "bot", "/page", True),
        (b"User-agent: *\nAllow: /page\nDisallow: /page\n", "bot", "/page", True),
        (b"User-agent: *\nDisallow: /x?a=\n", "bot", "/x?a=1", False),
        # escapes: the table of section 2.2.2
        (b"User-agent: *\nDisallow: /foo/bar?baz=quz\n", "bot", "/foo/bar?baz=quz", False),
        (
            b"User-agent: *\nDisallow: /foo/bar?baz=https://foo.bar\n",
            "bot",
            "/foo/bar?baz=https://foo.bar",
            False,
        ),
        ("User-agent: *\nDisallow: /foo/ツ".encode(), "bot", "/foo/%E3%83%84", False),
        (b"User-agent: *\nDisallow: /foo/%E3%83%84", "bot", "/foo/%e3%83%84", False),
        (b"User-agent: *\nDisallow: /foo/bar/%62%61%7A", "bot", "/foo/bar/baz", False),
        (b"User-agent: *\nDisallow: /a%2Fb\n", "bot", "/a%2fb.jpg", False),
        (b"User-agent: *\nDisallow: /a%2Fb\n", "bot", "/a/b.jpg", True),
        (b"User-agent: *\nDisallow: /private\n", "bot", "/%70rivate/x", False),
        (b"User-agent: *\nDisallow: /private\n", "bot", "/x/../private/x", False),
        (b"User-agent: *\nDisallow: /private\n", "bot", "/%23/%2e%2e/private/x", False),
        (b"User-agent: *\nDisallow: /a|b\n", "bot", "/a%7cb", False),
    ],
)
def test_rules(text: bytes, agent: str | None, path: str, allowed: bool) -> None:
    assert allows(parse_rules(text, agent), path) == allowed


def _rules(*lines: str) -> str:
    return parse_rules("\n".join(("User-agent: *", *lines)).encode(), "bot")


def test_what_is_kept_of_a_file_is_bounded() -> None:
    most = _rules(*(f"Disallow: /{n}" for n in range(MAX_RULES)))
    assert allows(most, "/x") and not allows(most, "/4999")
    for more in (
        _rules(*(f"Disallow: /{n}" for n in range(MAX_RULES + 1))),
        _rules(*(f"Disallow: /{n}{'y' * 1000}" for n in range(MAX_TEXT // 1000))),
    ):
        assert len(more) < 10
        assert not allows(more, "/x")
    assert len(_rules(*(f"Disallow: /{n % 9}" for n in range(40_000)))) < 100
    others = "User-agent: other\n" + "Disallow: /\n" * 9999
    assert parse_rules(others.encode(), "bot") == ""


def test_patterns_made_to_be_slow_are_not() -> None:
    rules = _rules("Disallow: /" + "a*" * 60_000 + "b$")
    began = time.monotonic()
    assert allows(rules, "/" + "a" * 7999)
    assert time.monotonic() - began < 1
