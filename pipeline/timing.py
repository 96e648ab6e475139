"""Things measured in turns, as a table and as JSON.

Machines differ and are shared, so a rate alone says little: what is compared runs in turns,
A B A B …, and what counts is the ratio of the medians. Shared with `tcjepa`; needs no more than
`pipeline.progress` does.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.progress import Progress


@dataclass(frozen=True)
class Case:
    """One of the things compared: `run` does its work once and returns how many items it did."""

    name: str
    run: Callable[[], int]
    flops_per_item: float | None = None


@dataclass(frozen=True)
class Row:
    """The rates of a case in items per second, one per round."""

    name: str
    rates: tuple[float, ...]
    flops_per_item: float | None = None

    @property
    def rate(self) -> float:
        """Median rate [items/s]."""
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Bench:
    """What one comparison found; ratios are to the row named `baseline`.

    `peak_flops` [1/s] is what the hardware could do, if known, for model FLOPs utilisation (MFU).
    """

    name: str
    unit: str
    baseline: str
    rows: tuple[Row, ...]
    peak_flops: float | None = None

    def ratio(self, row: Row) -> float:
        """Return a row's median rate over the baseline's."""
        return row.rate / self._base.rate

    def mfu(self, row: Row) -> float | None:
        """Return the share of the hardware's peak that a row reached, in [0, 1], if known."""
        if row.flops_per_item is None or self.peak_flops is None:
            return None
        return row.rate * row.flops_per_item / self.peak_flops

    def spread(self, row: Row) -> tuple[float, float]:
        """Return the smallest and largest ratio to the baseline within one round."""
        pairs = zip(row.rates, self._base.rates, strict=True)
        ratios = [rate / base for rate, base in pairs]
        return min(ratios), max(ratios)

    def table(self) -> str:
        """Return the comparison as plain text."""
        width = max(len(row.name) for row in self.rows)
        lines = [f"{self.name} [{self.unit}], median of {len(self._base.rates)}, ratio (range)"]
        for row in self.rows:
            low, high = self.spread(row)
            ratio = f"{self.ratio(row):8.2f}x ({low:.2f}-{high:.2f})"
            mfu = self.mfu(row)
            share = "" if mfu is None else f"  MFU {mfu:.1%}"
            compared = " baseline" if row.name == self.baseline else ratio
            lines.append(f"  {row.name:<{width}} {_number(row.rate):>12} {compared}{share}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: medians, ratios, and every round's rate."""
        rows = [
            {
                "name": row.name,
                "rate": row.rate,
                "ratio": self.ratio(row),
                "ratio_range": self.spread(row),
                "rates": row.rates,
                "flops_per_item": row.flops_per_item,
                "mfu": self.mfu(row),
            }
            for row in self.rows
        ]
        return {"name": self.name, "unit": self.unit, "baseline": self.baseline, "rows": rows}

    @property
    def _base(self) -> Row:
        return next(row for row in self.rows if row.name == self.baseline)


def measure(
    name: str,
    unit: str,
    cases: Sequence[Case],
    rounds: int,
    *,
    baseline: str,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
    peak_flops: float | None = None,
) -> Bench:
    """Run the cases in turns for `rounds` rounds, after one that does not count.

    `clock` [s] is wall-clock time, or `time.process_time` for work on one core, which other
    processes disturb less.
    """
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    total = (rounds + warm_up) * len(cases)
    with Progress(name, total, "runs") as progress:
        for number in range(rounds + warm_up):
            for case in cases:
                started = clock()
                items = case.run()
                # A coarse clock must not divide by zero.
                rate = items / max(clock() - started, 1e-9)
                progress.advance()
                if number or not warm_up:
                    rates[case.name].append(rate)
    rows = tuple(Row(case.name, tuple(rates[case.name]), case.flops_per_item) for case in cases)
    return Bench(name, unit, baseline, rows, peak_flops)


def report(
    benches: Sequence[Bench],
    *,
    command: Sequence[str],
    quick: bool,
    packages: Sequence[str],
    gpu: str | None = None,
) -> dict[str, Any]:
    """Return everything measured, with what it was measured on and with."""
    return {
        "command": list(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "hardware": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "gpu": gpu,
            "load_average": os.getloadavg()[0],
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "benches": [bench.to_json() for bench in benches],
    }


def cpu_name() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
