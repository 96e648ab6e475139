"""The loader against a bare decode-and-resize loop and the stock pipeline, on the same shards."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import simplejpeg

from pipeline.schema import Sample
from pipeline.timing import Bench, Case, measure
from tcjepa import keyed
from tcjepa.bench.loading import PER_CPU_SECOND, each, one_thread
from tcjepa.bench.stock import BATCH, CROP, STOCK_LOADER, has_webdataset, stock_loader
from tcjepa.data.augment import crop_box, crop_into, random_box
from tcjepa.data.batch import BatchBuilder
from tcjepa.data.captions import choose
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import Pixels, Scratch, open_image
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
from tcjepa.data.memory import ReadMemory
from tcjepa.data.reader import ShardReader

OURS: Final = "ours"
CARRIED: Final = "crops left to the device to resize"
BARE: Final = "bare decode and resize"
BARE_REUSED: Final = "bare, one decode buffer"
PIXELS: Final = "decode and resize"
_ENDLESS: Final = 10**9
_POOL: Final = 1024


def loader_config(shards: str, cache: Path) -> DataConfig:
    """Return the config of a bench's loader: 224-px crops, up to eight captions."""
    return DataConfig(
        shards=shards, image_size=CROP, workers=0, cache_dir=str(cache), max_bad_share=1.0
    )


def bench_loader(index: ShardIndex, config: DataConfig, samples: int, rounds: int) -> Bench:
    """Compare batches of images and captions on one core, without worker processes.

    The bare loop does nothing but decode and resize: no index, no tar, no captions, no fresh
    batches. It has the compressed images in memory and draws its crops from `random`.
    """
    steps = max(1, samples // BATCH)
    carried = config.model_copy(update={"resize": "device"})
    cases = [
        Case(OURS, _pulled(_ours(index, config, 0), steps)),
        Case(CARRIED, _pulled(_ours(index, carried, 0), steps)),
    ]
    images = jpegs(index, config, steps * BATCH)
    if images:
        cases.append(Case(BARE, lambda: _bare(images, config, None)))
        buffer = Scratch().room(3 * max(map(_area, images)))
        cases.append(Case(BARE_REUSED, lambda: _bare(images, config, buffer)))
    paths = local_paths(index)
    if has_webdataset() and paths:
        cases.append(Case(STOCK_LOADER, _pulled(iter(stock_loader(paths, config, 0)), steps)))
    with one_thread():
        return measure(
            "loader, one core", PER_CPU_SECOND, cases, rounds, baseline=cases[-1].name,
            clock=time.process_time,
        )  # fmt: skip


def bench_parts(index: ShardIndex, config: DataConfig, samples: int, rounds: int) -> Bench:
    """Time each part of the loader's work alone, on one core; compared with the pixels' part."""
    builder = BatchBuilder(index, config, seed=0)
    read = ReadMemory()
    rows = [row % len(index) for row in range(max(BATCH, samples // BATCH * BATCH))]
    found = [builder.reader.image_and_sample(row) for row in rows]
    opened = [open_image(data, kind, config.max_pixels) for data, kind, _ in found]
    keys = [keyed.key("crop", 0, 0, sample["uid"]) for *_, sample in found]
    boxes = [
        crop_box(image.height, image.width, config.crop_scale, config.crop_ratio, key)
        for image, key in zip(opened, keys, strict=True)
    ]
    scratch, kept = Scratch(), np.empty((BATCH, CROP, CROP, 3), np.uint8)

    def reading(row: int) -> None:
        read.clear()
        builder.reader.image_and_sample(row, read)

    def opening(item: tuple[memoryview, str, Sample]) -> None:
        open_image(item[0], item[1], config.max_pixels)

    def cropping(number: int) -> None:
        key = keyed.key("crop", 0, 0, found[number][2]["uid"])
        image = opened[number]
        crop_box(image.height, image.width, config.crop_scale, config.crop_ratio, key)

    def captioning(number: int) -> None:
        captions = found[number][2]["captions"]
        choose(captions, config, 0, 0, found[number][2]["uid"])

    def pixels(fresh: bool) -> int:
        batch = kept
        for number, (image, box) in enumerate(zip(opened, boxes, strict=True)):
            if fresh and number % BATCH == 0:
                batch = np.empty_like(kept)
            crop_into(batch[number % BATCH], image, box, scratch)
        return len(opened)

    numbers = range(len(rows))
    cases = [
        Case(PIXELS, lambda: pixels(fresh=False)),
        Case("the same, into new memory each batch", lambda: pixels(fresh=True)),
        each("read the sample and check it", rows, reading),
        each("read the image's header", found, opening),
        each("draw a crop", numbers, cropping),
        each("draw captions", numbers, captioning),
    ]
    with one_thread():
        return measure(
            "loader, its parts", PER_CPU_SECOND, cases, rounds, baseline=PIXELS,
            clock=time.process_time,
        )  # fmt: skip


def bench_workers(
    index: ShardIndex, config: DataConfig, counts: Sequence[int], samples: int, rounds: int
) -> Bench:
    """Compare numbers of worker processes, ours and stock's, by the wall clock.

    Processes start before the clock does, and what they prepared while others had their turn is
    thrown away.
    """
    steps = max(1, samples // BATCH)
    clock = _Stopwatch()
    paths = local_paths(index)
    with ExitStack() as stack:
        cases = []
        for workers in counts:
            streams = {OURS: _ours(index, config, workers)}
            # webdataset gives whole shards to workers and fails where one has none.
            if has_webdataset() and len(paths) >= max(1, workers):
                streams[STOCK_LOADER] = iter(stock_loader(paths, config, workers))
            for name, stream in streams.items():
                stack.callback(_close, stream)
                ready = workers * config.prefetch
                run = _pulled(stream, steps, ready, clock)
                cases.append(Case(f"{name}, {workers} workers", run))
        stack.enter_context(one_thread())
        return measure(
            "loader, worker processes", "images/s", cases, rounds,
            baseline=f"{OURS}, {counts[0]} workers", clock=clock,
        )  # fmt: skip


def jpegs(index: ShardIndex, config: DataConfig, count: int) -> list[bytes]:
    """Return the JPEGs among the first `count` images of an index, at most 1,024 of them."""
    reader = ShardReader(index, config.cache_bytes)
    rows = range(min(count, len(index), _POOL))
    found = [reader.image_and_sample(row)[:2] for row in rows]
    reader.close()
    images = [bytes(data) for data, image_format in found if image_format == "jpg"]
    return [data for data in images if simplejpeg.decode_jpeg_header(data)[2] != "CMYK"]


def local_paths(index: ShardIndex) -> list[str]:
    """Return the shards' paths; none where they are remote."""
    if not index.directory.is_local:
        return []
    return [index.directory.path(name) for name in index.shards]


def _area(data: bytes) -> int:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return int(height * width)


def _bare(images: Sequence[bytes], config: DataConfig, buffer: Pixels | None) -> int:
    batch = np.empty((BATCH, CROP, CROP, 3), np.uint8)
    draw = random.random
    for number, data in enumerate(images):
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=buffer)
        tries = ([draw(), draw(), draw(), draw()] for _ in range(10))
        top, left, height, width = random_box(
            pixels.shape[0], pixels.shape[1], config.crop_scale, config.crop_ratio, tries
        )
        cut = pixels[top : top + height, left : left + width]
        halves = height <= 2 * CROP and width <= 2 * CROP
        method = cv2.INTER_LINEAR if halves else cv2.INTER_AREA
        cv2.resize(cut, (CROP, CROP), dst=batch[number % BATCH], interpolation=method)
    return len(images)


def _ours(index: ShardIndex, config: DataConfig, workers: int) -> Iterator[Any]:
    config = config.model_copy(update={"workers": workers})
    return iter(make_loader(index, config, seed=0, global_batch=BATCH, steps=_ENDLESS))


def _pulled(
    stream: Iterator[Any], steps: int, ready: int = 0, clock: _Stopwatch | None = None
) -> Any:
    """Return what takes `steps` batches off a stream, after `ready` that do not count."""

    def run() -> int:
        if clock is not None:
            with clock.stopped():
                for _ in islice(stream, ready):
                    pass
        for _ in islice(stream, steps):
            pass
        return steps * BATCH

    return run


def _close(stream: Any) -> None:
    """End a stream's worker processes."""
    if hasattr(stream, "close"):
        stream.close()
    elif hasattr(stream, "_shutdown_workers"):
        stream._shutdown_workers()


class _Stopwatch:
    """A wall clock [s] that can be stopped for a while."""

    def __init__(self) -> None:
        self._lost = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._lost

    @contextmanager
    def stopped(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._lost += time.perf_counter() - started
