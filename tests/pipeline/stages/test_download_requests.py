"""What the download stage asks for, asks for again, and never asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.fetch.blocklist import Blocklist
from pipeline.stages.images import read_images
from pipeline.stages.task import is_done


def test_the_user_agent_names_us_unless_told_not_to(six: Any, web: Any) -> None:
    six.download()
    end = " (compatible; tcjepa; +https://github.com/rom1504/img2dataset)"  # as img2dataset does
    assert all(agent.endswith(end) for _, agent in web.requests)
    web.requests.clear()
    six.download(contact_url="https://lab.example/crawl")
    assert all("; tcjepa; +https://lab.example/crawl)" in agent for _, agent in web.requests)
    web.requests.clear()
    six.download(user_agent_token=None)
    assert web.requests
    assert not any("tcjepa" in agent for _, agent in web.requests)


def test_only_what_may_pass_is_tried_again(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.base + "/none.jpg"}, {"url": web.add("/busy.jpg", status=503)}])
    part.download(retries=2, backoff_s=0.01)
    paths = [path for path, _ in web.requests]
    assert paths.count("/none.jpg") == 1
    assert paths.count("/busy.jpg") == 3
    assert part.reasons == ["not_found", "http_5xx"]


@pytest.fixture
def mixed(web: Any, fetching: Callable[..., Any], image: Callable[..., bytes]) -> Any:
    """A part of an image, a permanent failure, two that pass, and a row that is not fetched."""
    web.add("/good.jpg", image(".jpg", 1))
    return fetching(
        [
            {"url": web.base + "/good.jpg", "captions": ["a"]},
            {"url": web.base + "/none.jpg", "captions": ["b"]},
            {"url": web.add("/soon.jpg", status=503), "captions": ["c"]},
            {"url": web.add("/later.jpg", status=429), "captions": ["d"]},
            {"url": None, "row_error": "missing_url", "captions": ["e"]},
        ]
    )


def test_a_retry_fetches_what_was_transient_and_nothing_else(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    first = mixed.table
    assert mixed.reasons == [None, "not_found", "http_5xx", "rate_limited", "missing_url"]
    tar = mixed.raw.read_bytes("00000.tar")
    web.requests.clear()
    web.add("/none.jpg", image(".jpg", 3))  # it is there now, but it was a permanent failure
    web.add("/soon.jpg", image(".jpg", 2))
    report = mixed.download(generation=1, mark="again")
    assert sorted(path for path, _ in web.requests) == ["/later.jpg", "/soon.jpg"]
    assert mixed.reasons == [None, "not_found", None, "rate_limited", "missing_url"]
    assert report.counts == {"rows": 5, "failed": 3}
    assert is_done(mixed.run, "download", "00000", "again")
    assert mixed.raw.read_bytes("00000.tar") == tar
    assert mixed.raw.exists("00000-r1_stats.json")
    table = mixed.table
    assert table.schema == first.schema
    assert table["captions"].to_pylist() == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert table["row"].to_pylist() == list(range(5))
    assert table["raw"].to_pylist() == ["00000.tar", None, "00000-r1.tar", None, None]
    fetched = table.filter(pa.compute.is_null(table["reason"]))
    assert read_images(mixed.run, fetched) == [image(".jpg", 1), image(".jpg", 2)]


def test_a_second_retry_adds_to_the_first(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    web.add("/soon.jpg", image(".jpg", 2))
    mixed.download(generation=1)
    web.requests.clear()
    web.add("/later.jpg", image(".jpg", 3))
    mixed.download(generation=2)
    assert [path for path, _ in web.requests] == ["/later.jpg"]
    assert mixed.table["raw"].to_pylist()[2:4] == ["00000-r1.tar", "00000-r2.tar"]
    web.requests.clear()
    mixed.download(generation=3)  # nothing transient is left
    assert web.requests == []
    assert mixed.reasons == [None, "not_found", None, None, "missing_url"]


def test_a_retry_under_other_settings_fetches_all_anew(
    mixed: Any, web: Any, image: Callable[..., bytes]
) -> None:
    mixed.download()
    web.add("/soon.jpg", image(".jpg", 2))
    mixed.download(generation=1)
    web.requests.clear()
    mixed.download(generation=1, image_size=16)
    assert len(web.requests) == 4
    heights = [height for height in mixed.table["height"].to_pylist() if height]
    assert heights == [16, 16]
    assert mixed.raw.names() == ["00000.parquet", "00000.tar", "00000_stats.json"]


def test_takedowns_are_not_fetched(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.add("/a.jpg", b"x")}, {"url": web.add("/b.jpg", b"x")}])
    part.download(blocklist=Blocklist(urls=frozenset({web.base + "/a.jpg"})))
    assert part.reasons == ["blocked_url", "not_an_image"]
    part.download(blocklist=Blocklist(hosts=frozenset({"127.0.0.1"})))
    assert part.reasons == ["blocked_host"] * 2
    assert [path for path, _ in web.requests] == ["/b.jpg"]


def test_loopback_is_refused_unless_it_is_listed(fetching: Callable[..., Any], web: Any) -> None:
    part = fetching([{"url": web.add("/a.jpg", b"x")}])
    part.download(allow_private_hosts=[f"127.0.0.1:{web.port + 1}"])
    assert part.reasons == ["private_address"]
    assert part.table["failure"].to_pylist() == ["policy"]
    assert web.requests == []
    part.download(allow_private_hosts=[f"127.0.0.1:{web.port}"])
    assert part.reasons == ["not_an_image"]


def test_files_are_read_under_the_sources_folder_only(
    fetching: Callable[..., Any], tmp_path: Path, image: Callable[..., bytes]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(image(".jpg"))
    (tmp_path / "secret.jpg").write_bytes(image(".jpg"))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    names = ["photos/a.jpg", "secret.jpg", "photos/link.jpg", "photos/../secret.jpg"]
    names += ["photos/%2e%2e/secret.jpg", "photos/pipe.jpg", "photos/none.jpg", "photos"]
    urls = [f"file://{tmp_path}/{name}" for name in names] + ["file://elsewhere/a.jpg"]
    part = fetching([{"url": url} for url in urls], local_root=str(folder))
    part.download()
    outside = "outside_folder"
    expected = [None, outside, outside, outside, outside, "not_an_image", "missing_file"]
    assert part.reasons == [*expected, "not_an_image", "bad_url"]
    without = fetching([{"url": urls[0]}])
    without.download()
    assert without.reasons == ["bad_scheme"]
