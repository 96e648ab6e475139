"""What watching costs: a training step with its monitors and without, in turns.

The monitors inside the forward pass run at every step; those on held images run every
`train.monitor_every` steps, so their cost is divided by it. Both are CPU time of the process on a
CPU (the machine may be busy), and time on a GPU:

    python -m tcjepa bench monitors scenes_tiny
    python -m tcjepa bench monitors vit_b16 text.encoder=hashed --batch 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pipeline.settings import load
from pipeline.timing import report
from tcjepa.bench.images import photographs
from tcjepa.bench.run import check_target
from tcjepa.bench.shards import write_shards
from tcjepa.cli import config_path
from tcjepa.config import TrainConfig
from tcjepa.data.loader import Batch
from tcjepa.model import jepa
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.loop import optimizer_step
from tcjepa.train.run import Run
from tcjepa.watch.alarms import Watch

#: Of the shards that are made on the spot [px], [images].
_SIDE, _IMAGES, _SAMPLES = 256, 32, 512


@dataclass(frozen=True)
class Cost:
    """Seconds of one step, and shares of it that watching takes."""

    step: float
    """A step without monitors, median [s]."""
    forward_share: float
    """Monitors of the forward pass, per step: median of paired ratios, less 1."""
    held_share: float
    """Monitors on held images, divided by `train.monitor_every`."""
    alarms_share: float
    """Judging a step's record."""

    @property
    def total_share(self) -> float:
        """All of watching, as a share of a step."""
        return self.forward_share + self.held_share + self.alarms_share


def measure(config: TrainConfig, rounds: int) -> Cost:
    """Return what watching costs at a config; `rounds` pairs of steps are timed."""
    device = pick_device(config.train.device)
    run = Run(config, World(0, 1, 0, 1, device), lambda _: None)
    run.model.train()
    batch = next(iter(run.batches()))
    with _unwatched():
        _step(run, batch)
    record = _step(run, batch)[1]
    plain, ratios = [], []
    for turn in range(rounds):
        watched = 0.0
        for is_watched in (turn % 2 == 0, turn % 2 == 1):
            if is_watched:
                watched = _step(run, batch)[0]
            else:
                with _unwatched():
                    plain.append(_step(run, batch)[0])
        ratios.append(watched / plain[-1])
    step = statistics.median(plain)
    run.measure({"monitor"})  # reads the held images
    held = min(_timed(lambda: run.measure({"monitor"}), device) for _ in range(3))
    every = config.train.monitor_every or float("inf")
    return Cost(
        step, statistics.median(ratios) - 1, held / every / step, _alarms(record) / step
    )  # fmt: skip


def _step(run: Run, batch: Batch) -> tuple[float, Mapping[str, Any]]:
    values: dict[str, Any] = {}

    def work() -> None:
        values.update(optimizer_step(run, batch))

    return _timed(work, run.world.device), values


def _timed(work: Any, device: torch.device) -> float:
    """Return CPU seconds of a process, or wall-clock seconds where a GPU works."""
    if device.type != "cuda":
        before = time.process_time()
        work()
        return time.process_time() - before
    torch.cuda.synchronize(device)
    before = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - before


def _alarms(record: Mapping[str, Any]) -> float:
    watch = Watch(0, steps=10_000)
    plain = {key: float(value) for key, value in record.items()}
    before = time.process_time()
    for step in range(1000):
        watch.check({"step": step, **plain})
    return (time.process_time() - before) / 1000


@contextmanager
def _unwatched() -> Iterator[None]:
    """Take the monitors out of the forward pass."""
    zero = torch.zeros(())
    with (
        mock.patch.object(jepa, "_word_monitors", lambda *_: {}),
        mock.patch.object(jepa, "_feature_std", lambda _: zero),
    ):
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench's arguments."""
    parser.add_argument("config", help="YAML config, or a packaged one's name")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--batch", type=int, help="images of a step; default: the config's")
    parser.add_argument("--rounds", type=int, default=60, help="pairs of steps (default: 60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")


def run(parsed: argparse.Namespace) -> None:
    """Print what watching costs at a config; raises `ConfigError` as `load` does.

    Shards are made on the spot unless `data.shards` is given.
    """
    check_target(parsed.json)
    with tempfile.TemporaryDirectory(prefix="tcjepa-bench-") as name:
        folder = Path(name)
        own = [f"run={folder / 'run'}"]
        own += [] if parsed.batch is None else [f"train.batch={parsed.batch}"]
        if not any(item.startswith("data.shards=") for item in parsed.overrides):
            own.append(f"data.shards={folder / 'shards'}")
            images = photographs(_IMAGES, _SIDE)
            write_shards(folder / "shards", images, _SIDE, _SAMPLES, _SAMPLES)
        config = load(TrainConfig, config_path(parsed.config), [*own, *parsed.overrides])
        cost = measure(config, parsed.rounds)
    found = {
        "config": parsed.config,
        "batch": config.train.batch,
        "monitor_every": config.train.monitor_every,
        "monitor_images": config.train.monitor_images,
        **asdict(cost),
        "total_share": cost.total_share,
    }
    print(json.dumps(found, indent=2))
    if parsed.json is not None:
        command = ["python", "-m", "tcjepa", *sys.argv[1:]]
        device = pick_device(config.train.device)
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
        whole = report([], command=command, quick=False, packages=("torch", "timm"), gpu=gpu)
        parsed.json.write_text(json.dumps({**whole, "monitors": found}, indent=2) + "\n")


__all__ = ["Cost", "add_arguments", "measure", "run"]
