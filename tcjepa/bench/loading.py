"""JPEG decoders, decode and crop, the loader and the index plan, each against the usual way."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision import io as torchvision_io
from torchvision.transforms import v2

from pipeline.timing import Bench, Case, measure
from tcjepa import keyed
from tcjepa.data.augment import random_crop
from tcjepa.data.config import DataConfig
from tcjepa.data.decode import decode
from tcjepa.data.index import ShardIndex
from tcjepa.data.loader import make_loader
from tcjepa.data.plan import Plan

CROP = 224
_BATCH = 32
_PLAN_BATCH = 2048
_SHARD_ROWS = 5000
_PER_CPU_SECOND = "images per CPU second"
_MAX_PIXELS = 64_000_000


def bench_decode(images: Sequence[bytes], rounds: int) -> Bench:
    """Compare JPEG decoders on one core, RGB pixels out."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]
    arrays = [np.frombuffer(data, np.uint8) for data in images]
    rgb = torchvision_io.ImageReadMode.RGB
    cases = [
        _each("simplejpeg", images, lambda data: simplejpeg.decode_jpeg(data, colorspace="RGB")),
        _each("OpenCV", arrays, lambda data: cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)),
        _each("torchvision.io", tensors, lambda data: torchvision_io.decode_jpeg(data, rgb)),
        _each("Pillow", images, lambda data: np.asarray(_open(data))),
    ]
    with one_thread():
        return measure(
            "JPEG decode", _PER_CPU_SECOND, cases, rounds, baseline="Pillow",
            clock=time.process_time,
        )  # fmt: skip


def bench_crop(images: Sequence[bytes], rounds: int) -> Bench:
    """Compare what the loader does to an image with Pillow and torchvision's transforms."""
    config = DataConfig(shards="")
    transform = _transform(config)

    def ours(data: bytes) -> Any:
        pixels = decode(data, "jpg", _MAX_PIXELS)
        key = keyed.key("crop", 0, 0, data[:64].hex())
        return random_crop(pixels, CROP, config.crop_scale, config.crop_ratio, key)

    cases = [
        _each("ours", images, ours),
        _each("Pillow + torchvision", images, lambda data: transform(_open(data))),
    ]
    with one_thread():
        return measure(
            "decode and crop", _PER_CPU_SECOND, cases, rounds, baseline="Pillow + torchvision",
            clock=time.process_time,
        )  # fmt: skip


def bench_loader(shards: Path, samples: int, rounds: int) -> Bench:
    """Compare batches of images and captions from the same shards, without worker processes."""
    config = DataConfig(
        shards=str(shards), image_size=CROP, workers=0, cache_dir=str(shards.parent / "cache")
    )
    index = ShardIndex.open(config)
    steps = samples // _BATCH
    paths = sorted(str(path) for path in shards.glob("*.tar"))

    def ours() -> int:
        loader = make_loader(index, config, seed=0, global_batch=_BATCH, steps=steps)
        return sum(len(batch.images) for batch in loader)

    def stock() -> int:
        return sum(len(images) for images, _ in _stock_loader(paths, config))

    cases = [Case("ours", ours), Case("webdataset + Pillow + torchvision", stock)]
    with one_thread():
        return measure(
            "loader", _PER_CPU_SECOND, cases, rounds,
            baseline="webdataset + Pillow + torchvision", clock=time.process_time,
        )  # fmt: skip


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


def _each(name: str, items: Sequence[Any], work: Callable[[Any], Any]) -> Case:
    def run() -> int:
        for item in items:
            work(item)
        return len(items)

    return Case(name, run)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _transform(config: DataConfig) -> Any:
    crop = v2.RandomResizedCrop(CROP, config.crop_scale, config.crop_ratio, antialias=True)
    return v2.Compose([crop, v2.PILToTensor()])


def _stock_loader(paths: list[str], config: DataConfig) -> Any:
    import webdataset

    transform = _transform(config)

    def captions(sample: Any) -> list[str]:
        texts = [caption["text"] for caption in sample["captions"]]
        return texts[: config.captions_per_image]

    def stack(samples: list[tuple[torch.Tensor, list[str]]]) -> tuple[torch.Tensor, list[Any]]:
        return torch.stack([image for image, _ in samples]), [texts for _, texts in samples]

    dataset = webdataset.WebDataset(paths, shardshuffle=len(paths)).shuffle(1000)
    dataset = dataset.decode("pil").to_tuple("jpg", "json").map_tuple(transform, captions)
    return dataset.batched(_BATCH, collation_fn=stack)
