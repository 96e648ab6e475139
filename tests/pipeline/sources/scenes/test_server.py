import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage

import cv2
import numpy as np
import pytest

from pipeline.settings import ConfigError
from pipeline.sources.scenes import ScenesConfig, SceneServer, UrlFaultShares, rows
from pipeline.sources.scenes.faults import original
from pipeline.sources.scenes.images import image_bytes
from pipeline.sources.scenes.world import scene

FAULTS = UrlFaultShares(**dict.fromkeys(UrlFaultShares.model_fields, 0.06))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def world() -> Iterator[ScenesConfig]:
    config = ScenesConfig(train=300, test=10, port=free_port(), faults=FAULTS, slow_seconds=0.3)
    with SceneServer(config):
        yield config


@pytest.fixture(scope="module")
def by_fault(world: ScenesConfig) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, line in enumerate(rows(world)):
        if line["split"] == "train":
            found.setdefault(line["url_fault"], []).append(index)
    assert set(found) == {*UrlFaultShares.model_fields, "none"}
    return found


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:
        return None


def get(
    world: ScenesConfig, index: int | str, follow: bool = True
) -> tuple[int, HTTPMessage, bytes]:
    path = index if isinstance(index, str) else f"/train/{index:06d}.jpg"
    opener = urllib.request.build_opener(*([] if follow else [Stay]))
    try:
        with opener.open(f"http://127.0.0.1:{world.port}{path}", timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def decode(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


@pytest.mark.parametrize(
    ("fault", "status"), [("not_found", 404), ("gone", 410), ("forbidden", 403)]
)
def test_refusals(
    world: ScenesConfig, by_fault: dict[str, list[int]], fault: str, status: int
) -> None:
    assert [get(world, n)[0] for n in by_fault[fault][:3]] == [status] * 3


def test_sound_urls_serve_the_scene_as_jpeg(
    world: ScenesConfig, by_fault: dict[str, list[int]]
) -> None:
    for index in by_fault["none"][:3]:
        status, headers, data = get(world, index)
        shown = scene(world, "train", index)
        assert status == 200 and headers["Content-Type"] == "image/jpeg"
        assert "X-Robots-Tag" not in headers
        assert decode(data).shape == (shown.height, shown.width, 3)


def test_bytes_do_not_depend_on_order_count_or_clients(world: ScenesConfig) -> None:
    paths = [f"/test/{n:06d}.jpg" for n in range(10)] * 4
    with ThreadPoolExecutor(8) as clients:
        first = list(clients.map(lambda p: get(world, p)[2], paths))
        again = list(clients.map(lambda p: get(world, p)[2], reversed(paths)))
    assert first == again[::-1]
    assert first[:10] == first[30:] == [image_bytes(world, "test", n) for n in range(10)]


def test_flaky_fails_once_then_is_fine(world: ScenesConfig, by_fault: dict[str, list[int]]) -> None:
    for index in by_fault["flaky"][:3]:  # whichever of the processes answers
        assert [get(world, index)[0] for _ in range(6)] == [500, 200, 200, 200, 200, 200]


def test_a_new_server_has_forgotten_what_was_flaky() -> None:
    faults = UrlFaultShares(**{n: float(n == "flaky") for n in UrlFaultShares.model_fields})
    config = ScenesConfig(train=2, test=0, port=free_port(), faults=faults)
    for _ in range(2):  # the second time on the same port, at once
        with SceneServer(config):
            assert [get(config, 1)[0], get(config, 1)[0]] == [500, 200]


def test_redirect_leads_to_the_image(world: ScenesConfig, by_fault: dict[str, list[int]]) -> None:
    index = by_fault["redirect"][0]
    status, headers, _ = get(world, index, follow=False)
    assert status == 302
    assert get(world, headers["Location"])[2] == image_bytes(world, "train", index)
    assert get(world, index)[0] == 200


def test_slow_takes_its_time_and_blocks_nobody(
    world: ScenesConfig, by_fault: dict[str, list[int]]
) -> None:
    start = time.monotonic()
    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(lambda n: get(world, n)[0], by_fault["slow"][:8])) == {200}
    assert 0.3 <= time.monotonic() - start < 8 * 0.3


def test_html_is_served_for_a_jpg(world: ScenesConfig, by_fault: dict[str, list[int]]) -> None:
    status, headers, data = get(world, by_fault["html"][0])
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert data.startswith(b"<!doctype html>")


def test_noai_is_fine_but_for_its_header(
    world: ScenesConfig, by_fault: dict[str, list[int]]
) -> None:
    status, headers, data = get(world, by_fault["noai"][0])
    assert status == 200 and headers["X-Robots-Tag"] == "noai"
    assert decode(data).std() > 5


def test_faults_that_live_in_the_image(world: ScenesConfig, by_fault: dict[str, list[int]]) -> None:
    for index in by_fault["truncated"]:
        data = get(world, index)[2]
        assert data.startswith(b"\xff\xd8") and not data.endswith(b"\xff\xd9")
    for index in by_fault["tiny"]:
        assert max(decode(get(world, index)[2]).shape[:2]) <= 24
    for index in by_fault["extreme_aspect"]:
        height, width = decode(get(world, index)[2]).shape[:2]
        assert max(height, width) / min(height, width) > 4.5
    for index in by_fault["blank"]:
        assert decode(get(world, index)[2]).std(axis=(0, 1)).max() < 2


def test_copies_are_exact_or_nearly_so(world: ScenesConfig, by_fault: dict[str, list[int]]) -> None:
    for index in by_fault["duplicate"]:
        assert get(world, index)[2] == get(world, original(world, "train", index))[2]
    for index in by_fault["near_duplicate"]:
        copy = decode(get(world, index)[2])
        source = decode(get(world, original(world, "train", index))[2])
        assert copy.shape[0] < source.shape[0]
        small = [cv2.resize(i, (16, 16), interpolation=cv2.INTER_AREA) for i in (copy, source)]
        assert np.abs(small[0].astype(int) - small[1]).mean() < 4


@pytest.mark.parametrize(
    "path",
    ["/", "/train/000300.jpg", "/test/000010.jpg", "/train/x.jpg", "/moved/train/000000.jpg"],
)
def test_what_is_not_there_is_404(
    world: ScenesConfig, by_fault: dict[str, list[int]], path: str
) -> None:
    assert 0 not in by_fault["redirect"]
    assert get(world, path)[0] == 404


def test_a_busy_port_names_the_key_and_a_fix(world: ScenesConfig) -> None:
    with (
        pytest.raises(ConfigError, match=rf"source\.port: {world.port} .*source\.port=\d+"),
        SceneServer(ScenesConfig(port=world.port)),
    ):
        pass


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_server_ends_with_its_parent(how: signal.Signals) -> None:
    port = free_port()
    program = (
        "import sys, time\n"
        "from pipeline.sources.scenes import SceneServer, ScenesConfig\n"
        f"with SceneServer(ScenesConfig(train=3, test=0, port={port})):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A shell's background jobs ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
        assert accepts(port)
        os.kill(parent.pid, how)
        parent.wait(60)
        deadline = time.monotonic() + 60
        while accepts(port) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not accepts(port)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()
