"""Checks that only mean something on a GPU: `python -m tcjepa.bench.gpu_checks CHECK …`.

Each prints one JSON object. docs/gpu-runs.md says what they must show and runs them all. On a CPU
they run too, to see that they work.

    shards FOLDER [SAMPLES]  write synthetic 256-px shards, and beside them a T5 for their words
    losses FOLDER            the same steps on CPU and here: fp32, bf16, compiled; recompilations
    syncs CONFIG key=value…  what makes the CPU wait for the GPU inside a step
    loop CONFIG key=value…   train; images/s, share of time waited for data, cost of the monitors
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from pipeline.settings import ConfigError, load
from tcjepa.bench.captions import save_t5
from tcjepa.bench.images import photographs
from tcjepa.bench.shards import WORDS, write_shards
from tcjepa.cli import config_path
from tcjepa.config import TrainConfig
from tcjepa.train.distributed import World, pick_device
from tcjepa.train.log import read
from tcjepa.train.loop import optimizer_step, train
from tcjepa.train.run import Run

SIDE: Final = 256
#: Steps of `losses`, enough for a difference in the first to grow.
STEPS: Final = 10
_TINY: Final = (
    "train.epochs=null", "train.steps=10", "train.warmup_steps=2", "train.batch=16",
    "data.workers=0", "data.image_size=64", "evaluate.image_size=64", "train.monitor_every=0",
    "train.evaluate_after=false",
)  # fmt: skip


def shards(folder: str, samples: str = "8192") -> dict[str, Any]:
    """Write `folder`/shards and `folder`/t5: t5-base's sizes, random weights."""
    write_shards(Path(folder) / "shards", photographs(256, SIDE), SIDE, int(samples), 1024)
    save_t5(Path(folder) / "t5", WORDS)
    return {"samples": int(samples)}


def losses(folder: str) -> dict[str, Any]:
    """Return the largest relative difference of each variant's losses to the CPU's in fp32."""
    here = pick_device("auto").type
    variants = {
        "cpu fp32": ["train.device=cpu", "train.precision=fp32"],
        f"{here} fp32": [f"train.device={here}", "train.precision=fp32"],
        f"{here} bf16": [f"train.device={here}", "train.precision=bf16"],
        f"{here} bf16 compiled": [
            f"train.device={here}", "train.precision=bf16", "train.compile=true"
        ],
    }  # fmt: skip
    found: dict[str, Any] = {}
    reference: list[float] = []
    for name, overrides in variants.items():
        graphs: list[int] = []
        own = _losses([*_TINY, f"data.shards={folder}/shards", *overrides], graphs)
        reference = reference or own
        differences = [abs(a - b) / abs(b) for a, b in zip(own, reference, strict=True)]
        found[name] = {
            "first": differences[0],
            "largest": max(differences),
            "losses": own,
            "graphs_after_each_step": graphs,
        }
    return found


def _losses(overrides: Sequence[str], graphs: list[int]) -> list[float]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    found = []
    with _run("scenes_tiny", overrides) as run:
        for batch in run.batches():
            found.append(float(optimizer_step(run, batch)["loss"]))
            run.step += 1
            graphs.append(int(counters["stats"]["unique_graphs"]))
    return found


def syncs(config: str, *overrides: str) -> dict[str, Any]:
    """Return how often each line made the CPU wait for the GPU in five steps."""
    with _run(config, [*_SHORT, *overrides]) as run:
        batches = run.batches()
        _take(run, batches, 5)
        if run.world.device.type != "cuda":
            return {"waits": None}
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            _take(run, batches, 5)
            torch.cuda.set_sync_debug_mode("default")
        # The mode itself warns, once, that it is a prototype.
        waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
        lines = Counter(f"{Path(w.filename).name}:{w.lineno}: {w.message}" for w in waits)
    return {"steps": 5, "waits": dict(lines.most_common(20))}


def loop(config: str, *overrides: str) -> dict[str, Any]:
    """Train as `pretrain` does; return what its log says, and what the monitors cost."""
    with tempfile.TemporaryDirectory() as folder:
        run = _built(config, [*_SHORT, *overrides], folder)
        train(run)
        windows = [row for row in read(Path(run.config.run)) if "images_per_s" in row]
    # The first windows compile and fill the loader's queues.
    settled = windows[len(windows) // 3 :]
    rate = median(float(row["images_per_s"] or 0) for row in settled)
    every, step = run.config.train.monitor_every or 500, run.config.train.batch / rate
    seconds = min(_seconds(run) for _ in range(3))
    return {
        "images_per_s": rate,
        "step_s": step,
        "data_wait": median(float(row["data_wait"] or 0) for row in settled),
        "monitor_s": seconds,
        "monitor_share": seconds / (every * step),
        "monitor_every": every,
        "cuda_memory_gib": windows[-1].get("cuda_memory_gib"),
    }


_SHORT: Final = (
    "train.epochs=null", "train.warmup_epochs=null", "train.steps=120", "train.warmup_steps=10",
    "train.evaluate_after=false", "train.log_every=10",
)  # fmt: skip


def _seconds(run: Run) -> float:
    started = time.perf_counter()
    run.measure(frozenset({"monitor"}))
    return time.perf_counter() - started


def _take(run: Run, batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        optimizer_step(run, next(batches))
        run.step += 1


def _built(config: str, overrides: Sequence[str], folder: str) -> Run:
    own = [f"run={folder}/run", f"data.cache_dir={folder}/cache"]
    found = load(TrainConfig, config_path(config), [*overrides, *own])
    device = pick_device(found.train.device)
    run = Run(found, World(rank=0, size=1, local_rank=0, local_size=1, device=device), _say)
    run.model.train()
    return run


@contextmanager
def _run(config: str, overrides: Sequence[str]) -> Iterator[Run]:
    """Enter with a run in a folder of its own, which goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        yield _built(config, overrides, folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


CHECKS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "shards": shards,
    "losses": losses,
    "syncs": syncs,
    "loop": loop,
}


def main(arguments: Sequence[str]) -> int:
    """Run a check and print what it found; returns the exit code."""
    if not arguments or arguments[0] not in CHECKS:
        _say(__doc__ or "")
        return 2
    try:
        print(json.dumps(CHECKS[arguments[0]](*arguments[1:]), indent=2))
    except ConfigError as error:
        _say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
