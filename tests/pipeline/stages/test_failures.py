"""Every way to fail, met for real by img2dataset and urllib, has its reason."""

from __future__ import annotations

import re
import socket
import urllib.error
from collections.abc import Callable
from http.client import BadStatusLine, IncompleteRead, InvalidURL
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.fetch.errors import FetchError
from pipeline.fetch.retry import RETRIED
from pipeline.sources.row import ROW_ERRORS
from pipeline.stages.failures import _PATTERNS, FAILURES, UNREACHED, classify


def test_the_web_fails_in_all_ways_and_each_has_its_reason(
    web: Any, fetching: Callable[..., Any], image: Callable[..., bytes]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]  # bound, not listening: refused
        jpg, png, webp = image(".jpg"), image(".png"), image(".webp")
        expected = {
            web.add("/good.jpg", jpg): None,
            web.add("/good.png", png): None,
            web.add("/moved.jpg", status=302, Location="/good.jpg"): None,
            web.base + "/nothing": "not_found",
            web.add("/410", status=410): "gone",
            web.add("/401", status=401): "forbidden",
            web.add("/403", status=403): "forbidden",
            web.add("/451", status=451): "forbidden",
            web.add("/418", status=418): "http_4xx",
            web.add("/429", status=429, Retry_After="1"): "rate_limited",
            web.add("/500", status=500): "http_5xx",
            web.add("/503", status=503): "http_5xx",
            web.add("/loop", status=302, Location="/loop"): "too_many_redirects",
            web.add("/tofile", status=302, Location="file:///etc/passwd"): "bad_scheme",
            web.base + "/slow": "timeout",
            web.base + "/reset": "reset",
            web.base + "/silent": "reset",
            web.base.replace("http:", "https:") + "/good.jpg": "tls",
            f"http://127.0.0.1:{closed}/image.jpg": "connection",
            web.add("/short.jpg", jpg[:500], Content_Length="1000"): "reset",
            "http://name.invalid/image.jpg": "dns",
            web.add("/page.jpg", b"<html><h1>no image</h1></html>"): "not_an_image",
            web.add("/empty.jpg"): "not_an_image",
            web.add("/cut.jpg", jpg[: len(jpg) // 2]): "truncated",
            web.add("/cut.png", png[: len(png) // 2]): "truncated",
            web.add("/cut.webp", webp[: len(webp) // 2]): "truncated",
            web.add("/noai.jpg", jpg, X_Robots_Tag="noai"): "opted_out",
            web.add("/ours.jpg", jpg, X_Robots_Tag="tcjepa: noindex"): "opted_out",
            web.add("/theirs.jpg", jpg, X_Robots_Tag="otherbot: noai"): None,
            "http://127.0.0.1:port/image.jpg": "bad_url",
            "http://" + "x" * 70 + ".example/ä": "bad_url",
            web.base + "/garbage": "bad_response",
            "file:///nowhere/image.jpg": "bad_scheme",
        }
        part = fetching([{"url": url} for url in expected])
        report = part.download(timeout=2, threads=32)
    table = part.table
    assert dict(zip(table["url"].to_pylist(), table["reason"].to_pylist(), strict=True)) == expected
    classes = table["failure"].to_pylist()
    assert classes == [FAILURES[r][0] if r else None for r in expected.values()]
    fetched = [reason is None for reason in expected.values()]
    assert [uid is not None for uid in table["uid"].to_pylist()] == fetched
    assert report.counts == {"rows": len(expected), "failed": fetched.count(False)}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.HTTPError("u", 404, "timed out image", None, None), "not_found"),  # type: ignore[arg-type]
        (urllib.error.HTTPError("u", 504, "Gateway Timeout", None, None), "http_5xx"),  # type: ignore[arg-type]
        (urllib.error.URLError(TimeoutError("timed out")), "timeout"),
        (urllib.error.URLError(OSError(110, "Connection timed out")), "timeout"),
        (urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution")), "dns"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "connection"),
        (ConnectionResetError(104, "Connection reset by peer"), "reset"),
        (IncompleteRead(b"ab", 10), "reset"),
        (BrokenPipeError(32, "Broken pipe"), "reset"),
        (InvalidURL("URL can't contain control characters. '/images/a b.jpg'"), "bad_url"),
        (urllib.error.URLError("unknown url type: image"), "bad_url"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"), "bad_url"),
        (UnicodeError("encoding with 'idna' codec failed (label too long)"), "bad_url"),
        (BadStatusLine("nonsense"), "other"),
        (FetchError("blocked_host", "timed out 404"), "blocked_host"),
        (FetchError("no_such_reason", "…"), "other"),
        ("HTTP Error 404: fetch:policy: x", "not_found"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_messages_that_a_local_server_cannot_cause(error: object, reason: str) -> None:
    assert classify(None if error is None else str(error)) == reason


def test_patterns_and_reasons_agree() -> None:
    assert {reason for _, reason in _PATTERNS} <= set(FAILURES)
    assert set(FAILURES) >= UNREACHED | RETRIED | set(ROW_ERRORS)
    assert all(FAILURES[reason][0] == "transient" for reason in RETRIED)
    assert all(re.fullmatch(r"[a-z0-9_]+", reason) for reason in FAILURES)


def test_every_reason_that_the_fetch_room_names_is_on_the_list() -> None:
    """And every reason on the list is somebody's: a dead one would promise what never happens."""
    named = set()
    for folder in ("fetch", "forget", "stages", "sources", "."):
        for path in (Path(pipeline.__path__[0]) / folder).glob("*.py"):
            if path.name != "failures.py":
                text = path.read_text()
                named |= set(re.findall(r'"([a-z0-9_]+)"', text))
                for reason in re.findall(r'FetchError\(\s*"([a-z0-9_]+)"', text):
                    assert reason in FAILURES, (path, reason)
    assert set(FAILURES) - {reason for _, reason in _PATTERNS} <= named
