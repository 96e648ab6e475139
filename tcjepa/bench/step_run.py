"""`python -m tcjepa bench step`: what a training step costs, and what it does with the hardware."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.settings import ConfigError
from pipeline.timing import Bench, report
from tcjepa.bench.captions import is_imitated
from tcjepa.bench.stepping import (
    BARE,
    IJEPA,
    TCJEPA_LIVE,
    WORDS,
    StepBench,
    StepCase,
    bench_config,
    measure_steps,
    synchronize,
)
from tcjepa.cli import config_path
from tcjepa.config import TrainConfig

_PACKAGES: Final = ("torch", "timm", "transformers", "numpy")
#: Steps of a profile: a few, for a file that a browser can open.
_WARM, _PROFILED = 2, 3
_GIB: Final = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bench step`."""
    parser.add_argument(
        "config", nargs="?", default="vit_b16", help="YAML config, or a packaged one's name"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config overrides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a chrome trace of a few steps here"
    )
    parser.add_argument("--batch", type=int, help="images of a step (train.batch)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each case (default: 5)")
    parser.add_argument(
        "--words", type=float, default=WORDS, help=f"mean words of a caption (default: {WORDS:g})"
    )


def run(parsed: argparse.Namespace) -> None:
    """Measure the steps of a config, print a table, and write what was asked for.

    Raises `ConfigError` before any work if the config is wrong or a file cannot be written.
    """
    for option in ("json", "profile"):
        target = getattr(parsed, option)
        if target is not None and not target.resolve().parent.is_dir():
            raise ConfigError(f"--{option}: there is no folder {target.resolve().parent}")
    if parsed.rounds < 1:
        raise ConfigError(f"--rounds {parsed.rounds}: at least one")
    config = _config(parsed)
    with tempfile.TemporaryDirectory(prefix="tcjepa-bench-") as folder:
        bench = StepBench(config, Path(folder), parsed.words)
        cases = bench.cases()
        torch._dynamo.utils.counters.clear()  # what this process compiled before is not ours
        is_compiled = config.train.compile
        memory = {case.name: _warm_up(case, bench.device, is_compiled) for case in cases}
        compiled = _compiled()
        name = f"training step, {parsed.config}, batch {config.train.batch}"
        measured = measure_steps(bench, cases, parsed.rounds, name)
        rows = _rows(measured, memory)
        found = {
            "config": parsed.config,
            "overrides": parsed.overrides,
            "batch": config.train.batch,
            "words": parsed.words,
            "threads": torch.get_num_threads(),
            "text_encoder": "t5-base sizes, random weights"
            if is_imitated(config.text)
            else config.text.encoder,
            "flops": {name: asdict(bench.flops(name)) for name in (IJEPA, TCJEPA_LIVE)},
            "rows": rows,
            "compiled": {"graphs": compiled, "after_warm_up": _compiled() - compiled,
                         "breaks": _graph_breaks()},
            "process_peak_gib": _process_peak(),
        }  # fmt: skip
        print(_table(measured, rows, found), flush=True)
        if parsed.profile is not None:
            _profile(cases, bench.device, parsed.profile)
    if parsed.json is not None:
        gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else None
        command = ["python", "-m", "tcjepa", *sys.argv[1:]]
        whole = report([measured], command=command, quick=False, packages=_PACKAGES, gpu=gpu)
        parsed.json.write_text(json.dumps({**whole, "step": found}, indent=2) + "\n")


def _config(parsed: argparse.Namespace) -> TrainConfig:
    """Return the config; on a CPU of one thread, where turns of many would not be comparable."""
    overrides = list(parsed.overrides)
    if parsed.batch is not None:
        overrides.append(f"train.batch={parsed.batch}")
    config = bench_config(config_path(parsed.config), overrides)
    if config.train.threads is None and not torch.cuda.is_available():
        return bench_config(config_path(parsed.config), [*overrides, "train.threads=1"])
    return config


def _warm_up(case: StepCase, device: torch.device, is_compiled: bool) -> float | None:
    """Take the first steps; return the memory that the case would take alone on a GPU [GiB].

    That is its models and optimizer states, and what its steps add at their peak. On a CPU steps
    are taken only to have them compiled.
    """
    if device.type != "cuda":
        if is_compiled:
            case.steps(_WARM)
        return None
    case.steps(_WARM)
    for owner in case.modules:
        owner.zero_grad(set_to_none=True)  # modules and optimizers both have it
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    case.steps(_WARM)
    synchronize(device)
    added = torch.cuda.max_memory_allocated(device) - before
    return (added + sum(map(_bytes, case.modules))) / _GIB


def _bytes(owner: Any) -> int:
    if isinstance(owner, torch.optim.Optimizer):
        states = [state.values() for state in owner.state.values()]
        tensors = [value for state in states for value in state if isinstance(value, Tensor)]
    else:
        tensors = [*owner.parameters(), *owner.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _rows(bench: Bench, memory: dict[str, float | None]) -> list[dict[str, Any]]:
    rates = {row.name: row.rates for row in bench.rows}
    rows = []
    for row in bench.rows:
        times = {
            base: [theirs / own for own, theirs in zip(row.rates, rates[base], strict=True)]
            for base in (IJEPA, BARE)
        }
        rows.append(
            {
                "name": row.name,
                "rate": row.rate,
                "flops_per_image": row.flops_per_item,
                "mfu": bench.mfu(row),
                "memory_gib": memory[row.name],
                **{f"time_to_{base}": _summary(ratios) for base, ratios in times.items()},
            }
        )
    return rows


def _summary(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _table(bench: Bench, rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    """Return the rows as plain text, with what the numbers mean below."""
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{bench.name} [{bench.unit}]; time as a multiple of {IJEPA}'s and of the encoder's: "
        "median (range)",
        f"  {'':<{width}} {'rate':>9} {'GFLOP/image':>12} {'MFU':>6} {'memory':>9}  "
        f"{'to ' + IJEPA:<20} to {BARE}",
    ]
    for row in rows:
        flops, mfu, memory = row["flops_per_image"], row["mfu"], row["memory_gib"]
        lines.append(
            f"  {row['name']:<{width}} {row['rate']:>9.4g} "
            f"{f'{flops / 1e9:.1f}' if flops else '':>12} {f'{mfu:.1%}' if mfu else '':>6} "
            f"{f'{memory:.1f} GiB' if memory else '':>9}  "
            f"{_ratio(row[f'time_to_{IJEPA}']):<20} {_ratio(row[f'time_to_{BARE}'])}"
        )
    compiled = found["compiled"]
    lines += [
        f"  text encoder: {found['text_encoder']}; {found['words']:g} words per caption on average",
        f"  compiled graphs: {compiled['graphs']}, after warm-up {compiled['after_warm_up']} more, "
        f"graph breaks: {compiled['breaks']}; peak memory of this process: "
        f"{found['process_peak_gib']:.1f} GiB",
    ]
    return "\n".join(lines)


def _ratio(summary: dict[str, float]) -> str:
    return f"{summary['median']:.2f} ({summary['low']:.2f}-{summary['high']:.2f})"


def _profile(cases: Sequence[StepCase], device: torch.device, file: Path) -> None:
    """Write a trace of the last case that trains, for chrome://tracing or Perfetto."""
    from torch.profiler import ProfilerActivity, profile

    trained = [case for case in cases if case.name in (IJEPA, TCJEPA_LIVE)][-1]
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    trained.steps(_WARM)
    synchronize(device)
    with profile(activities=activities) as profiler:
        trained.steps(_PROFILED)
        synchronize(device)
    profiler.export_chrome_trace(str(file))
    print(f"trace of {_PROFILED} steps of {trained.name}: {file}")


def _compiled() -> int:
    """Return how many graphs have been compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())


def _process_peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB


__all__ = ["add_arguments", "run"]
