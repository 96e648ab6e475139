"""What later runs of a directory fetch: what failed for a passing reason, and nothing blocked."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.funnel import check
from tests.pipeline.conftest import Web
from tests.pipeline.runs import pipeline

IMAGES = 12
THINGS = ["dog", "cat", "barn", "boat", "tree", "lamp", "cup", "horse", "train", "clock", "chair"]
THINGS += ["bridge"]


@pytest.fixture
def shards(web: Web, tmp_path: Path, image: Callable[..., bytes]) -> Callable[..., dict]:
    """Return a function that builds the shards of a small site and returns the funnel."""
    urls = [
        web.add(f"/{n}.jpg", image(seed=n, width=300, height=250), Content_Type="image/jpeg")
        for n in range(IMAGES)
    ]
    captions = [f"an old {thing} in front of a brick wall" for thing in THINGS]
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "list.parquet")

    def build(*overrides: str) -> dict:
        done = pipeline(
            "shards", "data_configs/urls.yaml", f"run={tmp_path / 'run'}",
            f"source.paths={tmp_path / 'list.parquet'}", "part_rows=4", "cluster.workers=1",
            "cluster.dashboard=null", "score.alignment=null",
            f"download.allow_private_hosts=['127.0.0.1:{web.port}']", "download.retries=0",
            *overrides,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "run" / "shards" / "manifest.json").read_text())
        check(manifest["funnel"])
        return dict(manifest["funnel"])

    return build


def test_only_passing_failures_are_fetched_again(web: Web, shards: Callable[..., dict]) -> None:
    sound = dict(web.pages)
    for number in (1, 2, 9):
        web.add(f"/{number}.jpg", status=503)
    web.add("/3.jpg", status=404)
    first = shards()
    assert (first["fetched"], first["failed"]["transient"]) == (8, {"http_5xx": 3})
    web.pages.update(sound)
    web.requests.clear()

    assert shards() == first  # not asked to, it does not
    assert web.requests == []
    again = shards("download.retry=transient")
    assert sorted(path for path, _ in web.requests) == ["/1.jpg", "/2.jpg", "/9.jpg"]
    assert again["fetched"] == again["kept"] == 11
    assert again["failed"] == {"transient": {}, "permanent": {"not_found": 1}, "policy": {}}
    web.requests.clear()
    assert shards("download.retry=transient") == again  # nothing is left that might pass
    assert shards() == again
    assert web.requests == []


def captions_by_number(run: Path) -> dict[int, list[str]]:
    """Return what the shards say of each image, by the number in its URL."""
    found = {}
    for path in (run / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    sample = json.load(file)
                    number = int(sample["url"].rpartition("/")[2].removesuffix(".jpg"))
                    found[number] = [caption["text"] for caption in sample["captions"]]
    return found


def test_a_setting_tried_and_taken_back_mixes_no_captions_of_images_that_changed(
    web: Web, shards: Callable[..., dict], tmp_path: Path, image: Callable[..., bytes]
) -> None:
    sound = web.pages["/0.jpg"]
    web.add("/0.jpg", status=503)
    web.add("/2.jpg", image(seed=2, width=300, height=150), Content_Type="image/jpeg")
    assert shards()["dropped"] == {"too_small": 1}
    shards("download.image_size=256", "--until", "download")
    web.pages["/0.jpg"] = sound
    web.add("/2.jpg", status=404)
    for overrides in ((), ("filter.image.min_entropy=0.4",)):
        funnel = shards(*overrides)
        assert (funnel["fetched"], funnel["dropped"]) == (IMAGES - 1, {})
        found = captions_by_number(tmp_path / "run")
        assert sorted(found) == [n for n in range(IMAGES) if n != 2]
        assert all([THINGS[n] in text for text in found[n]] == [True] for n in found)


def test_blocked_hosts_and_urls_are_neither_fetched_nor_kept(
    web: Web, shards: Callable[..., dict], tmp_path: Path
) -> None:
    blocked = f"filter.block.urls=['{web.base}/5.jpg']"
    assert shards(blocked)["failed"]["policy"] == {"blocked_url": 1}
    assert "/5.jpg" not in [path for path, _ in web.requests]
    web.requests.clear()
    # What was fetched before a list grew is dropped, and nothing is fetched anew.
    listed = tmp_path / "urls.txt"
    listed.write_text(f"# takedowns\n{web.base}/5.jpg\n{web.base}/7.jpg\n")
    funnel = shards(f"filter.block.urls={listed}")
    assert funnel["dropped"] == {"blocked_url": 1}
    assert funnel["kept"] == IMAGES - 2
    listed.write_text(f"{web.base}/5.jpg\n")  # the same path, another list
    assert shards(f"filter.block.urls={listed}")["kept"] == IMAGES - 1
    assert shards("filter.block.hosts=['127.0.0.1']")["dropped"]["blocked_host"] == IMAGES - 1
    assert web.requests == []
