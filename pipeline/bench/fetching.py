"""The download stage and the whole pipeline against img2dataset alone, from one local server.

Twice: on photographs of 1024 x 768 pixels, which img2dataset decodes, resizes and encodes, as what
users download, and on the demo's small scenes, which it stores as they are: the adverse case, where
nothing is cheaper than the download that all else is compared with. The server runs on the same
cores (and renders the scenes it sends), so the first row, plain requests whose answers are thrown
away, says how much of the time is the server's.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import multiprocessing
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bench.busy import busy_seconds
from pipeline.bench.photos import photo_server, photo_urls
from pipeline.cluster import ClusterConfig, connect
from pipeline.config import PipelineConfig
from pipeline.engine import Engine, Job
from pipeline.part import Part, cut
from pipeline.run import build_shards
from pipeline.settings import build
from pipeline.sources.build import build_source
from pipeline.sources.row import Source
from pipeline.sources.scenes.config import ScenesConfig, UrlFaultShares
from pipeline.sources.scenes.rows import HOST, SCHEMA, rows
from pipeline.sources.scenes.server import SceneServer
from pipeline.stages import download
from pipeline.stages.download import DownloadConfig
from pipeline.stages.task import tables_of
from pipeline.storage import Directory
from pipeline.timing import Bench, Case, Row, measure

_ALONE = "img2dataset alone"
_PARTS_PER_PROCESS = 2  # at least
_MOST_PART_ROWS = 500  # the demo's


@dataclass(frozen=True)
class Setting:
    """What all cases share: the URLs, how they are fetched, where files go, the Dask cluster."""

    urls: list[str]
    config: PipelineConfig
    folder: Path

    @property
    def batches(self) -> list[list[str]]:
        """The URLs, part by part."""
        size = self.config.part_rows
        return [self.urls[start : start + size] for start in range(0, len(self.urls), size)]


@dataclass(frozen=True)
class Lot:
    """What is fetched: how many images, and whether photographs or small scenes."""

    images: int
    photographs: bool

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"fetching {self.images:,} {'photographs' if self.photographs else 'small scenes'}"


def bench_fetching(lot: Lot, processes: int, rounds: int, warm_up: bool) -> list[Bench]:
    """Compare images per second, and per CPU second of all processes, the server's included.

    There are as many worker processes on each side. Clusters and process pools start, and load
    img2dataset, beforehand. CPU time is what counts on a machine that others use, and says nothing
    of waiting, such as for the stages that are one task of the whole run.
    """
    # Before the server and the cluster, so that its processes load while those start.
    with (
        _pool(processes) as pool,
        (_photos if lot.photographs else _scenes)(lot.images, processes, pool) as setting,
        Engine(Directory(setting.folder / "staged"), setting.config.cluster) as engine,
    ):
        cases = [
            Case("requests alone", lambda: _request_all(setting)),
            Case(_ALONE, _alone(setting, pool)),
            Case("Dask download stage", _staged(setting, engine)),
            Case("whole pipeline, no captioner", _whole(setting)),
        ]
        busy: dict[str, list[float]] = {case.name: [] for case in cases}
        watched = [Case(case.name, _watched(case, busy[case.name])) for case in cases]
        found = measure(lot.name, "images/s", watched, rounds, baseline=_ALONE, warm_up=warm_up)
    used = tuple(Row(name, tuple(rates[-rounds:])) for name, rates in busy.items())
    return [found, Bench(f"{lot.name}: work", "images per CPU second", _ALONE, used)]


def _watched(case: Case, rates: list[float]) -> Callable[[], int]:
    """Return the case's `run`, which also notes how many images it did per CPU second."""

    def run() -> int:
        before = busy_seconds()
        images = case.run()
        rates.append(images / max(busy_seconds() - before, 1e-2))
        return images

    return run


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Yield spawned processes, which is what `img2dataset.download` uses."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=load_img2dataset) as pool:
        for _ in range(processes):
            pool.submit(int)  # a process starts with the first task it is needed for
        yield pool


def load_img2dataset() -> None:
    """Import what a fetch imports."""
    importlib.import_module("img2dataset.downloader")


@contextmanager
def _scenes(images: int, processes: int, _: ProcessPoolExecutor) -> Iterator[Setting]:
    world = quiet_world(images, free_port())
    table = pa.Table.from_pylist(list(rows(world)), SCHEMA).select(["url", "captions"])
    with _folder() as folder, SceneServer(world), _cluster(folder, processes) as address:
        config = demo_config(folder, world.port, _part_rows(images, processes), address)
        yield _setting(folder, table, config)


@contextmanager
def _photos(images: int, processes: int, pool: ProcessPoolExecutor) -> Iterator[Setting]:
    """Yield photographs with the scenes' alt texts, under the pipeline's default settings."""
    world = quiet_world(images, free_port())
    captions = pa.array([row["captions"] for row in rows(world)], pa.list_(pa.string()))
    with (
        _folder() as folder,
        photo_server(folder / "photos", images, pool) as port,
        _cluster(folder, processes) as address,
    ):
        table = pa.table({"url": photo_urls(port, images), "captions": captions})
        config = plain_config(folder, port, _part_rows(images, processes), address)
        yield _setting(folder, table, config)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as name:
        yield Path(name)


@contextmanager
def _cluster(folder: Path, processes: int) -> Iterator[str]:
    with connect(ClusterConfig(workers=processes, dashboard=None), str(folder / "dask")) as client:
        client.run(load_img2dataset)
        yield client.scheduler.address


def _part_rows(images: int, processes: int) -> int:
    return min(-(-images // (_PARTS_PER_PROCESS * processes)), _MOST_PART_ROWS)


def _setting(folder: Path, table: pa.Table, config: PipelineConfig) -> Setting:
    pq.write_table(table, folder / "list.parquet")
    return Setting(table["url"].to_pylist(), config, folder)


def quiet_world(images: int, port: int) -> ScenesConfig:
    """Return a world whose URLs all behave: what is measured is work, not waiting."""
    faults = UrlFaultShares(**dict.fromkeys(UrlFaultShares.model_fields, 0.0))
    return ScenesConfig(train=images, test=0, port=port, faults=faults)


def demo_config(folder: Path, port: int, part_rows: int, address: str | None) -> PipelineConfig:
    """Return the demo's config without its captioner, reading the list in `folder`."""
    demo = {
        "filter": {"image": {"min_side": 64}},
        "score": {"alignment": {"kind": "linear", "text_width": 512}},
        "pack": {"shard_mb": 8},
    }
    return plain_config(folder, port, part_rows, address, **demo)


def plain_config(
    folder: Path, port: int, part_rows: int, address: str | None, **sections: Any
) -> PipelineConfig:
    """Return a config that is all defaults but for `sections`, reading the list in `folder`."""
    data = {
        "run": str(folder / "whole"),
        "part_rows": part_rows,
        "source": {
            "kind": "urls",
            "paths": str(folder / "list.parquet"),
            "caption_columns": ["captions"],
        },
        "download": {"timeout": 30, "allow_private_hosts": [f"{HOST}:{port}"]},
        "cluster": {"address": address, "dashboard": None},
        **sections,
    }
    return build(PipelineConfig, data)


def _request_all(setting: Setting) -> int:
    def size(url: str) -> int:
        with urllib.request.urlopen(url, timeout=setting.config.download.timeout) as answer:
            return len(answer.read())

    with ThreadPoolExecutor(setting.config.download.threads) as pool:
        return sum(size > 0 for size in pool.map(size, setting.urls))


def _alone(setting: Setting, pool: ProcessPoolExecutor) -> Callable[[], int]:
    """Return what fetches all parts with img2dataset, without Dask."""
    numbers = itertools.count()

    def run() -> int:
        folder = setting.folder / f"alone-{next(numbers)}"
        folder.mkdir()
        tasks = [
            pool.submit(fetch_alone, number, urls, str(folder), setting.config.download)
            for number, urls in enumerate(setting.batches)
        ]
        return sum(task.result() for task in tasks)

    return run


def fetch_alone(number: int, urls: list[str], folder: str, config: DownloadConfig) -> int:
    """Fetch one part with img2dataset's own objects; return how many images it got."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    wanted = Path(folder) / f"{number}.arrow"
    table = pa.table({"url": urls})
    with pa.OSFile(str(wanted), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.only_if_bigger,
            encode_quality=config.quality,
            encode_format=config.format,
            skip_reencode=True,
        ),
        thread_count=config.threads,
        save_caption=False,
        extract_exif=False,
        output_folder=folder,
        column_list=["url"],
        timeout=config.timeout,
        number_sample_per_shard=10**6,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format=config.format,
        retries=config.retries,
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=config.respect_opt_out,
    )
    ok, _ = downloader((number, str(wanted)))
    if not ok:
        raise RuntimeError(f"img2dataset failed on part {number}")
    statistics = json.loads((Path(folder) / f"{number:05d}_stats.json").read_text())
    return int(statistics["successes"])


def _staged(setting: Setting, engine: Engine) -> Callable[[], int]:
    """Return what runs the download stage on all parts, anew each time it is called."""
    source: Source = build_source(setting.config.source)
    parts = cut(engine.run, source, setting.config.part_rows)
    numbers = itertools.count()

    def run() -> int:
        mark = f"round {next(numbers)}"
        with contextlib.redirect_stderr(io.StringIO()):  # its progress, amid the bench's own
            engine.execute("download", [_job(part, source, setting.config, mark) for part in parts])
        _stop_at(engine.failures)
        tables = tables_of(engine.run, "download")
        read = (tables.read_table(f"{part.name}.parquet", ["reason"]) for part in parts)
        return sum(table["reason"].null_count for table in read)

    return run


def _job(part: Part, source: Source, config: PipelineConfig, mark: str) -> Job:
    arguments = (part, source, config.download)
    return Job("download", part.name, mark, download.download, arguments)


def _whole(setting: Setting) -> Callable[[], int]:
    """Return what builds shards in a new run directory each time it is called."""
    numbers = itertools.count()

    def run() -> int:
        folder = setting.folder / f"whole-{next(numbers)}"
        config = setting.config.model_copy(update={"run": str(folder)})
        with contextlib.redirect_stderr(io.StringIO()):
            result = build_shards(config)
        _stop_at(result.failures)
        assert result.manifest is not None  # it was not stopped early
        return int(result.manifest["funnel"]["fetched"])

    return run


def _stop_at(failures: dict[str, tuple[str, Any]]) -> None:
    if failures:
        part, (stage, error) = next(iter(failures.items()))
        raise RuntimeError(f"part {part} failed in {stage}: {error}")


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
