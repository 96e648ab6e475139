"""All of the trainer's benches, printed as they finish."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.settings import ConfigError
from pipeline.timing import Bench, report
from tcjepa.bench.command import add_common_arguments
from tcjepa.bench.images import photographs
from tcjepa.bench.loaders import bench_loader, loader_config
from tcjepa.bench.loading import bench_crop, bench_decode, bench_plan
from tcjepa.bench.shards import write_shards
from tcjepa.bench.stepping import bench_demo, bench_published
from tcjepa.data.index import ShardIndex

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench all`."""
    add_common_arguments(parser)


def run(parsed: argparse.Namespace) -> None:
    """Run every bench, print its table, and write everything to `--json` if one is named.

    Raises `ConfigError` before any work if the file cannot be written.
    """
    check_target(parsed.json)
    benches = list(printed(_benches(QUICK if parsed.quick else FULL)))
    if parsed.json is not None:
        found = described(benches, ["bench"], parsed.quick, parsed.json)
        parsed.json.write_text(json.dumps(found, indent=2) + "\n")


def check_target(json_file: Path | None) -> None:
    """Refuse a file that could not be written; raises `ConfigError`."""
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {json_file.resolve().parent}")


def printed(benches: Iterable[Bench]) -> Iterator[Bench]:
    """Print each bench's table as it is done, and pass it on."""
    for bench in benches:
        print(f"{bench.table()}\n", flush=True)
        yield bench


def described(
    benches: Sequence[Bench], words: Sequence[str], quick: bool, json_file: Path
) -> dict[str, Any]:
    """Return everything measured, with the machine, the versions and the command line's `words`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    command = ["python", "-m", "tcjepa", *words, *(["--quick"] if quick else [])]
    command += ["--json", str(json_file)]
    packages = [name for name in _PACKAGES if _installed(name)]
    return report(benches, command=command, quick=quick, packages=packages, gpu=gpu)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _benches(size: Size) -> Iterator[Bench]:
    images = photographs(size.images, _SIDE)
    yield bench_decode(images, size.rounds)
    yield bench_crop(images, size.rounds)
    yield bench_plan(size.planned, size.rounds)
    with tempfile.TemporaryDirectory(prefix="tcjepa-bench-") as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, images, _SIDE, size.samples, max(16, size.samples // 8))
        config = loader_config(str(shards), shards.parent / "cache")
        yield bench_loader(ShardIndex.open(config), config, size.samples, size.rounds)
        yield bench_demo(shards, size.batch, size.rounds)
        if torch.cuda.is_available():
            yield bench_published(shards, size.rounds)
