"""JPEG decoders, decode and crop, and the index plan, each against the usual way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from torchvision import io as torchvision_io

from pipeline.timing import Bench, Case, measure
from tcjepa import keyed
from tcjepa.bench.stock import CROP, STOCK, open_pillow, stock_transform
from tcjepa.data.augment import Box, crop_box, crop_into, divisor_for, resize_into
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import OpenedImage, Scratch, open_image
from tcjepa.data.plan import Plan

_PLAN_BATCH = 2048
_SHARD_ROWS = 5000
PER_CPU_SECOND = "images per CPU second"
_MAX_PIXELS = 64_000_000


def bench_decode(images: Sequence[bytes], rounds: int) -> Bench:
    """Compare JPEG decoders on one core, RGB pixels out."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    arrays = [np.frombuffer(data, np.uint8) for data in images]
    rgb = torchvision_io.ImageReadMode.RGB
    cases = [
        each("simplejpeg", images, lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")),
        each("OpenCV", arrays, lambda data: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)),
        each("torchvision.io", tensors, lambda data: torchvision_io.decode_jpeg(data, rgb)),
        each("Pillow", images, lambda data: np.asarray(open_pillow(data))),
    ]
    with one_thread():
        return measure(
            "JPEG decode", PER_CPU_SECOND, cases, rounds, baseline="Pillow",
            clock=time.process_time,
        )  # fmt: skip


def bench_crop(images: Sequence[bytes], rounds: int, name: str = "decode and crop") -> Bench:
    """Compare what the loader does to an image with Pillow and torchvision's transforms.

    Where images are large, also with our own way without libjpeg-turbo's smaller versions.
    """
    config = DataConfig(shards="")
    transform = stock_transform(config)
    out = np.empty((CROP, CROP, 3), np.uint8)
    scratch = Scratch()

    def opened(data: bytes) -> tuple[OpenedImage, Box]:
        image = open_image(data, "jpg", _MAX_PIXELS)
        key = keyed.key("crop", 0, 0, data[:64].hex())
        return image, crop_box(image.height, image.width, config.crop_scale, config.crop_ratio, key)

    def ours(data: bytes) -> None:
        crop_into(out, *opened(data), scratch)

    def whole(data: bytes) -> None:
        image, box = opened(data)
        resize_into(out, image.pixels(1, scratch), box)

    cases = [
        each("ours", images, ours),
        each(STOCK, images, lambda data: transform(open_pillow(data))),
    ]
    if any(divisor_for(box, CROP) > 1 for _, box in map(opened, images)):
        cases.insert(1, each("ours, decoded whole", images, whole))
    with one_thread():
        return measure(name, PER_CPU_SECOND, cases, rounds, baseline=STOCK, clock=time.process_time)


def bench_plan(samples: int, rounds: int) -> Bench:
    """Compare an epoch's order from the plan with what torch's `DistributedSampler` draws."""
    sizes = np.full(-(-samples // _SHARD_ROWS), _SHARD_ROWS, dtype=np.int64)
    total = int(sizes.sum())

    def ours() -> int:
        plan = Plan(sizes, "bench", 0, 16)
        for start in range(0, total, _PLAN_BATCH):
            plan.rows(start, min(start + _PLAN_BATCH, total))
        return total

    def stock() -> int:
        rows: list[int] = torch.randperm(total).tolist()
        return len(rows)

    cases = [Case("ours, by windows", ours), Case("torch.randperm, at once", stock)]
    with one_thread():
        return measure(
            "index plan", "samples per CPU second", cases, rounds,
            baseline="torch.randperm, at once", clock=time.process_time,
        )  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep OpenCV and torch to one thread, so that CPU time is the time of one core."""
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def each(name: str, items: Sequence[Any], work: Callable[[Any], Any]) -> Case:
    """Return the case that does `work` to each of the items."""

    def run() -> int:
        for item in items:
            work(item)
        return len(items)

    return Case(name, run)
