"""All of the trainer's benches, printed as they finish."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.settings import ConfigError
from pipeline.timing import Bench, report
from tcjepa.bench.images import photographs
from tcjepa.bench.loading import bench_crop, bench_decode, bench_loader, bench_plan
from tcjepa.bench.shards import write_shards
from tcjepa.bench.stepping import bench_demo, bench_published

_SIDE = 256
_PACKAGES = (
    "tcjepa", "torch", "torchvision", "timm", "simplejpeg", "opencv-python-headless", "pillow",
    "webdataset", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is measured; `batch` None takes the demo's own."""

    images: int
    samples: int
    planned: int
    batch: int | None
    rounds: int


FULL = Size(images=128, samples=1024, planned=5_000_000, batch=None, rounds=7)
QUICK = Size(images=4, samples=32, planned=20_000, batch=2, rounds=2)


def run_benches(quick: bool, json_file: Path | None) -> None:
    """Run every bench, print its table, and write everything to `json_file` if one is named.

    Raises `ConfigError` before any work if the file cannot be written.
    """
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {json_file.resolve().parent}")
    benches = []
    for bench in _benches(QUICK if quick else FULL):
        print(f"{bench.table()}\n", flush=True)
        benches.append(bench)
    if json_file is not None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        command = ["python", "-m", "tcjepa", "bench", *(["--quick"] if quick else [])]
        command += ["--json", str(json_file)]
        found = report(benches, command=command, quick=quick, packages=_PACKAGES, gpu=gpu)
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def _benches(size: Size) -> Iterator[Bench]:
    images = photographs(size.images, _SIDE)
    yield bench_decode(images, size.rounds)
    yield bench_crop(images, size.rounds)
    yield bench_plan(size.planned, size.rounds)
    with tempfile.TemporaryDirectory(prefix="tcjepa-bench-") as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, images, _SIDE, size.samples, max(16, size.samples // 8))
        yield bench_loader(shards, size.samples, size.rounds)
        yield bench_demo(shards, size.batch, size.rounds)
        if torch.cuda.is_available():
            yield bench_published(shards, size.rounds)
