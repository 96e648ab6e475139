"""Lists, tars and whole runs on S3, against moto's server on loopback: the bytes of a local run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

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
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def rows(web: Any, image: Callable[..., bytes]) -> list[dict[str, Any]]:
    """A list of images on loopback, and of URLs that fail."""
    listed = []
    for n in range(IMAGES):
        url = web.add(f"/{n:02d}.jpg", image(seed=n, width=120, height=90))
        listed.append({"url": url, "caption": f"a photo of {n} grey cats on a sofa"})
    return listed + [{"url": f"{web.base}/absent/{n}", "caption": "gone"} for n in range(BAD)]


def write_list(path: str, rows: list[dict[str, Any]]) -> str:
    with fsspec.open(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return path


def command(config: str, run: str | Path, paths: str, web: Any, *overrides: str) -> list[str]:
    given = [f"run={run}", f"source.paths={paths}", *SMALL, *overrides]
    given.append(f'download.allow_private_hosts=["127.0.0.1:{web.port}"]')
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
    bucket: str, tmp_path: Path, web: Any, rows: list[dict[str, Any]]
) -> None:
    local_list = write_list(str(tmp_path / "list.parquet"), rows)
    build("urls", tmp_path / "run", local_list, web)
    expected = shards_of(tmp_path / "run")
    assert len(expected) > 2

    listed = write_list(f"{bucket}/lists/list.parquet", rows)
    run = f"{bucket}/runs/killed"
    fs = fsspec.filesystem("s3")
    delays = random.Random(time.time_ns())
    for _ in range(2):
        process = subprocess.Popen(
            command("urls", run, listed, web), stdout=subprocess.DEVNULL,
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
    build("urls", run, listed, web)
    fs.invalidate_cache()
    assert shards_of(run) == expected
    assert [name for name in fs.find(run) if "/.tmp-" in name] == []

    manifest = json.loads(files(f"{run}/shards")["manifest.json"])
    assert manifest["funnel"]["rows"] == IMAGES + BAD
    assert manifest["samples"] == IMAGES
    before = files(f"{run}/tables")
    build("urls", run, listed, web)  # nothing is left to do
    fs.invalidate_cache()
    assert files(f"{run}/tables") == before


def test_status_and_dry_run_read_a_run_on_s3(
    bucket: str, web: Any, rows: list[dict[str, Any]]
) -> None:
    listed = write_list(f"{bucket}/lists/few.parquet", rows[-12:])
    run = f"{bucket}/runs/few"
    build("urls", run, listed, web)
    status = [sys.executable, "-m", "pipeline", "status", run]
    shown = subprocess.run(status, capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0, shown.stderr
    assert "fetched" in shown.stdout
    planned = subprocess.run(
        [*command("urls", run, listed, web), "--dry-run"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert "2 parts as last cut" in planned.stdout


def test_tars_on_s3_are_adopted_where_they_lie(
    bucket: str, tmp_path: Path, web: Any, image: Callable[..., bytes]
) -> None:
    for number in range(3):
        buffer = io.BytesIO()
        with webdataset.TarWriter(buffer) as writer:
            for n in range(5):
                key = f"{number:02d}{n}"
                picture = image(seed=int(key), width=120, height=90)
                text = f"a drawing of {n} dogs and {number} hats"
                writer.write({"__key__": key, "jpg": picture, "txt": text})
        for folder in (str(tmp_path), f"{bucket}/tars"):
            with fsspec.open(f"{folder}/{number:05d}.tar", "wb") as file:
                file.write(buffer.getvalue())
    name = "{00000..00002}.tar"
    build("img2dataset_shards", tmp_path / "run", f"{tmp_path}/{name}", web)
    build("img2dataset_shards", f"{bucket}/runs/adopted", f"{bucket}/tars/{name}", web)
    expected = shards_of(tmp_path / "run")
    assert shards_of(f"{bucket}/runs/adopted") == expected
    assert json.loads(files(f"{bucket}/runs/adopted/shards")["manifest.json"])["samples"] == 15
    assert web.requests == []


def test_two_runs_at_once_in_one_place_on_s3_do_no_harm(
    bucket: str, tmp_path: Path, web: Any, rows: list[dict[str, Any]]
) -> None:
    """An object store has no lock: both do the work, and write the same bytes."""
    listed = write_list(f"{bucket}/lists/twice.parquet", rows[:12])
    build("urls", tmp_path / "run", listed, web)
    run = f"{bucket}/runs/twice"
    both = [
        subprocess.Popen(
            command("urls", run, listed, web, "cluster.workers=1"), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    fsspec.filesystem("s3").invalidate_cache()
    assert shards_of(run) == shards_of(tmp_path / "run")
