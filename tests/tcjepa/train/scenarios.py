"""Trains several runs one after another in the same ranks, for tests: starting ranks is slow.

`torchrun -m tests.tcjepa.train.scenarios CONFIG NAME:key=value,key=value …` writes each run into
a folder NAME beside the config.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from pipeline.settings import load
from tcjepa.config import TrainConfig
from tcjepa.train import distributed, parallel
from tcjepa.train.distributed import World
from tcjepa.train.loop import train
from tcjepa.train.run import Run


def run_scenarios(config: Path, scenarios: list[str], world: World) -> None:
    """Train the named scenarios to their last step, or on from where they stand."""
    for scenario in scenarios:
        name, _, given = scenario.partition(":")
        overrides = [f"run={config.parent / name}", *filter(None, given.split(","))]
        run = Run(load(TrainConfig, config, overrides), world, lambda _: None)
        train(run)
        distributed.wait(world)


if __name__ == "__main__":
    parallel.COMPILER = "aot_eager"  # the same graphs as inductor's, without compiling C++
    if os.environ.get("SMALL_BUCKETS"):  # so that DDP cuts the graph of a tiny model, too
        torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 2000  # type: ignore[attr-defined]
        parallel.BUCKET_MIB = 0.004  # type: ignore[assignment]
    ranks = distributed.start("cpu")
    run_scenarios(Path(sys.argv[1]), sys.argv[2:], ranks)
    distributed.stop()
