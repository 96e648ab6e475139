"""Whoever calls urllib in this process is governed; settings that make no sense are refused."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.fetch.blocklist import Blocklist
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.install import govern
from pipeline.fetch.opener import user_agent
from pipeline.settings import ConfigError, build
from pipeline.stages.download import DownloadConfig
from tests.pipeline.fetch.web import HostileWeb, answers


def test_urlopen_is_governed(hostile: HostileWeb, canary: int) -> None:
    govern(FetchConfig(allow_private_hosts=[f"127.0.0.1:{hostile.port}"]))
    url = hostile.serve("/", answers(b"image", "X-Robots-Tag: all", "X-Robots-Tag: x: noindex"))
    request = urllib.request.Request(url, headers={"User-Agent": "anything"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        # All that img2dataset asks an answer for.
        assert answer.headers.get_all("X-Robots-Tag", []) == ["all", "x: noindex"]
        assert answer.read() == b"image"
        assert (answer.status, answer.url, answer.geturl()) == (200, url, url)
        assert answer.info() is answer.headers
    assert b"tcjepa" in hostile.requests[0]
    with pytest.raises(FetchError, match="private_address"):
        urllib.request.urlopen(f"http://127.0.0.1:{canary}/")
    with pytest.raises(FetchError, match="bad_scheme"):
        urllib.request.urlopen("file:///etc/passwd")


def test_the_same_policy_keeps_what_it_knows_and_another_takes_its_place() -> None:
    first = govern(FetchConfig(), Blocklist(frozenset({"a.test"})))
    assert govern(FetchConfig(), Blocklist(frozenset({"A.test."}))) is first
    # Settings that are none of the opener's change nothing.
    assert govern(DownloadConfig(image_size=64), Blocklist(frozenset({"a.test"}))) is first
    others = [
        govern(FetchConfig(max_redirects=1), Blocklist(frozenset({"a.test"}))),
        govern(FetchConfig(max_redirects=1)),
        govern(FetchConfig(max_redirects=1), local_root="/"),
    ]
    assert len({id(opener) for opener in (first, *others)}) == 4


def test_threads_that_start_together_get_one_opener() -> None:
    config = FetchConfig(max_redirects=2)
    with ThreadPoolExecutor(8) as pool:
        openers = list(pool.map(lambda _: govern(config), range(16)))
    assert len(set(map(id, openers))) == 1


def test_the_room_loads_nothing_heavy() -> None:
    """Driver and tests import it too: neither OpenCV nor img2dataset nor Dask come along."""
    code = (
        "import sys, pipeline.fetch.install; "
        "print([m for m in ('cv2', 'img2dataset', 'dask', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_private_hosts": ["127.0.0.1"]}, "host:port"),
        ({"allow_private_hosts": ["http://127.0.0.1:80"]}, "host:port"),
        ({"allow_private_hosts": ["*:80"]}, "host:port"),
        ({"user_agent_token": "two words"}, "one word"),
        ({"user_agent_token": "a\r\nX: y"}, "one word"),
        ({"contact_url": "https://a.example/ b"}, "contact_url"),
        ({"contact_url": "https://a.example)\r\nX: y"}, "contact_url"),
        ({"contact_url": "a.example"}, "contact_url"),
        ({"host_rate": 0.01, "host_wait_s": 60}, "raise host_wait_s"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"deadline_s": 0}, "deadline_s"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(FetchConfig, options)


def test_settings_that_do() -> None:
    listed = ["127.0.0.1:*", "[::1]:80", "images.lan:8080"]
    config = build(
        FetchConfig, {"allow_private_hosts": listed, "contact_url": "mailto:a@b.example"}
    )
    assert user_agent(config).endswith(" (compatible; tcjepa; +mailto:a@b.example)")


def test_how_fast_is_no_part_of_what() -> None:
    """Patience and pace may change on a rerun without fetching everything again."""
    pace = {
        name
        for name, field in DownloadConfig.model_fields.items()
        if field.json_schema_extra == {"pace": True}
    }
    assert {"timeout", "retries", "retry", "host_rate", "deadline_s", "threads"} <= pace
    what = {"max_bytes", "max_pixels", "allow_private_hosts", "respect_robots_txt", "image_size"}
    assert not pace & what
