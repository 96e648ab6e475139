"""All of the pipeline's benches, printed as they finish."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.bench.captioning import bench_captioning
from pipeline.bench.fetching import Lot, bench_fetching
from pipeline.bench.planning import bench_planning
from pipeline.bench.scaling import bench_scaling, format_scaling
from pipeline.bench.selecting import bench_selecting
from pipeline.bench.stages import bench_stages
from pipeline.settings import ConfigError
from pipeline.timing import Bench, report

_PACKAGES = (
    "tcjepa", "dask", "distributed", "img2dataset", "webdataset", "pyarrow", "spacy",
    "opencv-python-headless", "simplejpeg", "numpy", "torch", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is measured; `processes` None takes one per core."""

    photographs: int
    scenes: int
    processes: int | None
    scored: int
    captioned: int
    selected: int
    parts: int
    scaled: int
    rounds: int
    warm_up: bool


FULL = Size(
    photographs=3000, scenes=6000, processes=None, scored=256, captioned=32, selected=100_000,
    parts=1000, scaled=1000, rounds=5, warm_up=True,
)  # fmt: skip
QUICK = Size(
    photographs=8, scenes=24, processes=1, scored=4, captioned=4, selected=2000,
    parts=20, scaled=20, rounds=1, warm_up=False,
)  # fmt: skip


def run_benches(quick: bool, json_file: Path | None, rounds: int | None = None) -> None:
    """Run every bench, print its table, and write everything to `json_file` if one is named.

    `rounds` replaces the turns of each case. Raises `ConfigError` before any work if the file
    cannot be written.
    """
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {json_file.resolve().parent}")
    benches = []
    size = QUICK if quick else FULL
    size = size if rounds is None else replace(size, rounds=rounds)
    for bench in _benches(size):
        print(f"{bench.table()}\n", flush=True)
        benches.append(bench)
    scales = bench_scaling(size.scaled)
    print(format_scaling(scales), flush=True)
    if json_file is not None:
        command = ["python", "-m", "pipeline", "bench", *(["--quick"] if quick else [])]
        command += [] if rounds is None else ["--rounds", str(rounds)]
        command += ["--json", str(json_file)]
        found = report(benches, command=command, quick=quick, packages=_PACKAGES)
        found["scaling"] = [asdict(scale) for scale in scales]
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def _benches(size: Size) -> Iterator[Bench]:
    yield bench_stages(size.scored, size.rounds)
    yield bench_planning(size.parts, size.rounds)
    yield bench_selecting(size.selected, size.rounds)
    processes = size.processes or os.cpu_count() or 1
    photographs = Lot(size.photographs, photographs=True)
    for lot in (photographs, Lot(size.scenes, photographs=False)):
        yield from bench_fetching(lot, processes, size.rounds, size.warm_up)
    yield bench_captioning(size.captioned, size.rounds, size.warm_up)
