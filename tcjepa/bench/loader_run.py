"""`python -m tcjepa bench loader`: which decoder, how many workers, and how it compares."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.settings import ConfigError
from pipeline.timing import Bench
from tcjepa.bench.command import add_common_arguments
from tcjepa.bench.images import photographs
from tcjepa.bench.loaders import (
    BARE,
    BARE_REUSED,
    CARRIED,
    OURS,
    bench_loader,
    bench_parts,
    bench_workers,
    jpegs,
    loader_config,
)
from tcjepa.bench.loading import bench_crop, bench_decode
from tcjepa.bench.run import check_target, described, printed
from tcjepa.bench.shards import write_shards
from tcjepa.bench.stock import BATCH, STOCK_LOADER, has_webdataset
from tcjepa.cores import usable_cores
from tcjepa.data.index import ShardIndex

_SIDE: Final = 256
#: Sides of the photographs that own data sets have [px], and how many are decoded in a round.
_LARGE: Final = {1024: 8, 2048: 4, 4000: 2}
_DECODED: Final = 128


@dataclass(frozen=True)
class _Size:
    samples: int  # in the shards made here, and pulled in a round
    rounds: int
    large: dict[int, int]


_FULL: Final = _Size(samples=1024, rounds=9, large=_LARGE)
_QUICK: Final = _Size(samples=2 * BATCH, rounds=2, large={512: 1})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench loader`."""
    add_common_arguments(parser)
    parser.add_argument("--shards", help="measure on these shards; default: some made on the spot")
    parser.add_argument("--rounds", type=int, help="turns of each case (default: 9)")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="worker processes to try, in turns"
    )


def run(parsed: argparse.Namespace) -> None:
    """Measure, print tables and what to set, and write `--json` if it is named.

    Raises `ConfigError` before any work for a file that cannot be written, for shards that are not
    there and for numbers below their least.
    """
    check_target(parsed.json)
    size = _QUICK if parsed.quick else _FULL
    rounds = size.rounds if parsed.rounds is None else parsed.rounds
    if rounds < 1 or min(parsed.workers or [0]) < 0:
        raise ConfigError("--rounds must be at least 1 and --workers at least 0")
    if not has_webdataset():
        print("webdataset is not installed here: the stock loader is left out\n")
    counts = parsed.workers or _worker_counts()
    benches = list(printed(_benches(parsed.shards, size, rounds, counts)))
    advice = recommend(benches)
    print("\n".join(f"{key}: {value}" for key, value in advice.items()))
    if parsed.json is not None:
        words = ["bench", "loader", *(["--shards", parsed.shards] if parsed.shards else [])]
        words += ["--rounds", str(rounds), "--workers", *map(str, counts)]
        found = described(benches, words, parsed.quick, parsed.json) | {"found": advice}
        parsed.json.write_text(json.dumps(found, indent=2) + "\n")


def recommend(benches: list[Bench]) -> dict[str, Any]:
    """Return the fastest decoder and worker count, and our rate over the others' [ratio].

    Ratios are medians of those within one round, which other work on the machine disturbs least.
    """
    by_name = {bench.name: bench for bench in benches}
    found: dict[str, Any] = {}
    if "JPEG decode" in by_name:
        found["fastest decoder"] = max(by_name["JPEG decode"].rows, key=lambda row: row.rate).name
    ours, others = _rates(by_name["loader, one core"])
    for name in (STOCK_LOADER, BARE, BARE_REUSED):
        if name in others:
            found[f"ours / {name}"] = _ratio(ours, others[name])
    if CARRIED in others:
        found[f"{CARRIED} / ours"] = _ratio(others[CARRIED], ours)
    workers = by_name["loader, worker processes"]
    mine = [row for row in workers.rows if row.name.startswith(OURS)]
    best = max(mine, key=lambda row: row.rate)
    found["data.workers"] = int(best.name.split()[-2])
    for row in mine:
        for other in workers.rows:
            if other.name == row.name.replace(OURS, STOCK_LOADER):
                found[f"ours / {other.name}"] = _ratio(row.rates, other.rates)
    return found


def _rates(bench: Bench) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    rates = {row.name: row.rates for row in bench.rows}
    return rates.pop(OURS), rates


def _ratio(ours: tuple[float, ...], others: tuple[float, ...]) -> float:
    pairs = zip(ours, others, strict=True)
    return round(statistics.median(mine / other for mine, other in pairs), 3)


def _benches(shards: str | None, size: _Size, rounds: int, counts: list[int]) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="tcjepa-bench-") as folder:
        made = Path(folder) / "shards"
        if shards is None:
            images = photographs(min(_DECODED, size.samples), _SIDE)
            write_shards(made, images, _SIDE, size.samples, max(16, size.samples // 8))
        config = loader_config(shards or str(made), Path(folder) / "cache")
        index = ShardIndex.open(config)
        images = jpegs(index, config, _DECODED)
        if images:
            yield bench_decode(images, rounds)
            yield bench_crop(images, rounds)
        yield bench_loader(index, config, size.samples, rounds)
        yield bench_parts(index, config, size.samples, rounds)
        yield bench_workers(index, config, counts, size.samples, rounds)
    for side, count in size.large.items():
        yield bench_crop(photographs(count, side), rounds, f"decode and crop, {side} px")


def _worker_counts() -> list[int]:
    """Return the worker counts to try: inline, one, two, and doubling up to all cores."""
    cores = usable_cores()
    counts = [0, 1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return counts
