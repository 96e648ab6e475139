"""Tiny runs for tests of the trainer: a config that trains in milliseconds, and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.settings import load
from tcjepa.config import TrainConfig
from tests.tcjepa.shards import Caption, caption, write_shards

ROOT = Path(__file__).parents[3]


def some_captions(number: int) -> list[Caption]:
    """Return none, one or two captions, of different lengths."""
    texts = ["a red star", f"the {'very ' * (number % 4)}small blue ring number {number}"]
    return [caption(text) for text in texts[: (number * 7) % 5 % 3]]


def write_config(folder: Path, **train: Any) -> Path:
    """Write shards of 40 images and a config to train on them; return the config's path."""
    write_shards(folder / "shards", 40, some_captions, size=(40, 40), shard_size=16)
    config = {
        "run": str(folder / "run"),
        "data": {"shards": str(folder / "shards"), "image_size": 32, "workers": 0, "window": 1},
        "text": {"encoder": "hashed", "width": 16, "max_words": 8},
        "model": {
            "encoder": "vit_base_patch16_gap_224",
            "encoder_kwargs": {
                "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2
            },
            "predictor": {"width": 16, "depth": 2},
        },
        "masks": {"min_context": 2},
        "train": {
            "batch": 8, "steps": 12, "warmup_steps": 2, "lr": 1e-3, "device": "cpu",
            "precision": "fp32", "threads": 1, "log_every": 2, "monitor_every": 0,
            "monitor_images": 16, "evaluate_after": False, **train,
        },
        "evaluate": {"image_size": 32},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def tiny_config(folder: Path, *overrides: str) -> TrainConfig:
    """Return the config that `write_config` writes, with overrides."""
    path = folder / "config.yaml"
    return load(TrainConfig, path if path.exists() else write_config(folder), overrides)


def start(*arguments: str | Path, ranks: int = 1, module: str = "tcjepa") -> subprocess.Popen[str]:
    """Start `python -m tcjepa …` as a process of its own, or as several under torchrun."""
    launcher = ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
    return subprocess.Popen(
        [sys.executable, "-m", *(launcher if ranks > 1 else []), module, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 600) -> tuple[int, str]:
    """Wait for a process; return its exit code and everything it printed."""
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out + error
