"""Ten times the rows: is it ten times the time, and does the driver stay as small?

Each run is the command a user would start, from nothing to a manifest, in a process of its own; a
server in this process answers it. Start-up counts on both sides.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bench.fetching import demo_config, free_port, quiet_world
from pipeline.settings import to_yaml
from pipeline.sources.scenes.rows import SCHEMA, rows
from pipeline.sources.scenes.server import SceneServer

_PART_ROWS = 100


@dataclass(frozen=True)
class Scale:
    """What a run of so many rows took: wall-clock time, and the driver's peak memory."""

    rows: int
    seconds: float
    driver_mib: float


def bench_scaling(images: int) -> list[Scale]:
    """Return what runs of `images` and of ten times as many rows take, the first measured twice.

    The first of the three warms the machine's caches and does not count.
    """
    world = quiet_world(10 * images, free_port())
    with tempfile.TemporaryDirectory(prefix="pipeline-bench-") as name, SceneServer(world):
        table = pa.Table.from_pylist(list(rows(world)), SCHEMA).select(["url", "captions"])
        folder = Path(name)
        _, small, large = [
            _run(folder / str(number), table.slice(0, count), world.port)
            for number, count in enumerate((images, images, 10 * images))
        ]
        return [small, large]


def format_scaling(scales: list[Scale]) -> str:
    """Return the comparison as plain text."""
    small, large = scales
    lines = [
        f"scaling: {large.rows / small.rows:.0f}x the rows take "
        f"{large.seconds / small.seconds:.2f}x the time and "
        f"{large.driver_mib / small.driver_mib:.2f}x the driver's memory"
    ]
    lines += [
        f"  {scale.rows:>9,} rows  {scale.seconds:8.1f} s  {scale.driver_mib:6.0f} MiB"
        for scale in scales
    ]
    return "\n".join(lines)


def _run(folder: Path, table: pa.Table, port: int) -> Scale:
    folder.mkdir()
    pq.write_table(table, folder / "list.parquet")
    config = demo_config(folder, port, _PART_ROWS, address=None)
    (folder / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "pipeline", "shards", str(folder / "config.yaml")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _peak_mib(process.pid))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(f"the run failed: {process.stderr.read().decode()[-2000:]}")
    return Scale(table.num_rows, seconds, peak)


def _peak_mib(pid: int) -> float:
    """Return a process's peak resident memory so far; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(sizes[0]) / 1024 if sizes else 0.0
