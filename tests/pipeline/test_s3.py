"""Lists, tars and whole runs on S3, against moto's server on loopback: the bytes of a local run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipeline.lock import locked
from pipeline.schema import uid_of
from pipeline.stages.images import read_images
from pipeline.storage import Directory

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

import fsspec  # noqa: E402

ROOT = Path(__file__).parents[2]
IMAGES, BAD = 24, 3
SMALL = (
    "part_rows=6",
    "pack.shard_mb=0.2",
    "filter.preset=none",
    "cluster.workers=2",
    "cluster.dashboard=null",
    "download.retries=0",
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a server of our own; the standard variables lead every process to it."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    name = f"bucket-{uuid.uuid4().hex}"  # moto's servers of one process share their buckets
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@dataclass(frozen=True)
class Site:
    """Images on loopback, a list of them and of some that are gone, and a local run of it."""

    port: int
    rows: list[dict[str, Any]]
    expected: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, image: Callable[..., bytes]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    port = server.server_port
    rows = []
    for n in range(IMAGES + BAD):
        name = f"{n:02d}.jpg"
        if n < IMAGES:
            (folder / name).write_bytes(image(seed=n, width=120, height=90))
        caption = f"a photo of {n} grey cats on a sofa"
        rows.append({"url": f"http://127.0.0.1:{port}/{name}", "caption": caption})
    run = folder / "run"
    build("urls", run, write_list(str(folder / "list.parquet"), rows), port)
    yield Site(port, rows, shards_of(run))
    server.shutdown()
    thread.join()
    server.server_close()


def write_list(path: str, rows: list[dict[str, Any]]) -> str:
    with fsspec.open(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return path


def command(config: str, run: str | Path, paths: str, port: int, *overrides: str) -> list[str]:
    given = [f"run={run}", f"source.paths={paths}", *SMALL, *overrides]
    given.append(f'download.allow_private_hosts=["127.0.0.1:{port}"]')
    return [sys.executable, "-m", "pipeline", "shards", f"data_configs/{config}.yaml", *given]


def build(*arguments: Any) -> None:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def files(url: str | Path) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(str(url))
    return {path.rsplit("/", 1)[1]: fs.cat_file(path) for path in sorted(fs.find(root))}


def digests(run: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the trainer reads."""
    return {k: hashlib.sha256(data).hexdigest() for k, data in files(f"{run}/shards").items()}


def shards_of(run: str | Path) -> dict[str, str]:
    return {
        k: digest for k, digest in digests(run).items() if k.endswith((".tar", "index.parquet"))
    }


def test_a_run_on_s3_resumes_when_killed_and_has_the_bytes_of_a_local_one(
    bucket: str, site: Site
) -> None:
    listed = write_list(f"{bucket}/lists/list.parquet", site.rows)
    run = f"{bucket}/runs/killed"
    fs = fsspec.filesystem("s3")
    delays = random.Random(time.time_ns())
    for _ in range(2):
        process = subprocess.Popen(
            command("urls", run, listed, site.port), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        started = time.monotonic()
        while time.monotonic() - started < 120 and process.poll() is None:
            fs.invalidate_cache()
            if fs.exists(f"{run}/parts/parts.json"):
                break
            time.sleep(0.05)
        time.sleep(delays.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The killed run's lock would be taken over after three minutes.
        fs.invalidate_cache()
        if fs.exists(f"{run}/.lock"):
            fs.rm(f"{run}/.lock")
    build("urls", run, listed, site.port)
    fs.invalidate_cache()
    assert shards_of(run) == site.expected
    assert len(site.expected) > 2
    assert [name for name in fs.find(run) if "/.tmp-" in name] == []
    manifest = json.loads(files(f"{run}/shards")["manifest.json"])
    assert manifest["funnel"]["rows"] == IMAGES + BAD
    assert manifest["samples"] == IMAGES

    before = files(f"{run}/tables")
    build("urls", run, listed, site.port)  # nothing is left to do
    fs.invalidate_cache()
    assert files(f"{run}/tables") == before
    status = python("-m", "pipeline", "status", run)
    assert "fetched" in status
    assert f"{IMAGES + BAD}" in status
    planned = python(*command("urls", run, listed, site.port)[1:], "--dry-run")
    assert "5 parts as last cut" in planned
    assert "5 of 5 parts done" in planned


def python(*arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tars_on_s3_are_adopted_where_they_lie(bucket: str, image: Callable[..., bytes]) -> None:
    pictures = {}
    for number in range(3):
        tar = fsspec.open(f"{bucket}/tars/{number:05d}.tar", "wb")
        with tar as file, webdataset.TarWriter(file) as writer:
            for n in range(5):
                key = f"{number:02d}{n}"
                picture = image(seed=int(key), width=120, height=90)
                pictures[uid_of(picture)] = picture
                text = f"a drawing of {n} dogs and {number} hats"
                writer.write({"__key__": key, "jpg": picture, "txt": text})
    # The first tar has its sidecar, with a row that img2dataset could not fetch.
    listed = [{"key": f"00{n}", "status": "success", "error_message": None} for n in range(5)]
    listed.append({"key": "005", "status": "failed", "error_message": "HTTP Error 404: Not Found"})
    described = [
        {**row, "url": f"http://h/{row['key']}", "caption": "a drawing of dogs"} for row in listed
    ]
    write_list(f"{bucket}/tars/00000.parquet", described)
    run = f"{bucket}/runs/adopted"
    build("img2dataset_shards", run, f"{bucket}/tars/{{00000..00002}}.tar", 1)
    shards = files(f"{run}/shards")
    index = pq.read_table(pa.BufferReader(shards["index.parquet"])).to_pylist()
    packed = {
        row["uid"]: shards[row["shard"]][
            row["image_offset"] : row["image_offset"] + row["image_size"]
        ]
        for row in index
    }
    assert packed == pictures
    funnel = json.loads(shards["manifest.json"])["funnel"]
    assert (funnel["rows"], funnel["failed"]["permanent"]) == (16, {"not_found": 1})
    assert fsspec.filesystem("s3").find(f"{run}/raw") == []


def test_a_second_run_in_one_place_on_s3_is_refused(bucket: str, site: Site) -> None:
    listed = write_list(f"{bucket}/lists/twice.parquet", site.rows)
    run = f"{bucket}/runs/twice"
    with locked(Directory(run)):
        done = subprocess.run(
            command("urls", run, listed, site.port, "cluster.workers=1"),
            capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "is working in" in done.stderr
    fsspec.filesystem("s3").invalidate_cache()
    assert fsspec.filesystem("s3").find(run) == []


def test_of_a_tar_on_s3_little_more_than_the_images_is_fetched(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is packed from a few images of many tars; a file opened on S3 reads far ahead."""
    s3fs = pytest.importorskip("s3fs")
    run = Directory(f"{bucket}/runs/scattered")
    content = random.Random(0).randbytes(60_000_000)
    (run / "raw").write_bytes("00000.tar", content)
    fetched = 0
    original = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal fetched
        answer = await original(self, method, *arguments, **options)
        if method == "get_object":
            fetched += answer["ContentLength"]
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    offsets = list(range(1_000_000, 60_000_000, 3_000_000))
    offsets += [offset + 70_000 for offset in offsets]  # neighbours come with one request
    size = 65_000
    rows = pa.table({
        "raw": ["00000.tar"] * len(offsets),
        "image_offset": offsets,
        "image_size": [size] * len(offsets),
    })  # fmt: skip
    assert read_images(run, rows) == [content[at : at + size] for at in offsets]
    assert fetched == len(offsets) // 2 * (70_000 + size)
