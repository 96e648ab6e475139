"""Folders with tiny labelled shards, a base config and a study of three runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from pipeline.settings import build, load
from tcjepa.ablate.study import StudyConfig
from tests.tcjepa.shards import caption, write_shards

TINY = {
    "run": "unused",
    "data": {"shards": "unused", "image_size": 16, "captions_per_image": 2, "workers": 0},
    "text": {"encoder": "hashed", "max_words": 8, "width": 16},
    "model": {
        "encoder": "vit_base_patch16_gap_224",
        "encoder_kwargs": {
            "img_size": 16, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2,
        },
        "predictor": {"width": 16, "depth": 1},
    },
    "train": {
        "batch": 8, "steps": 6, "device": "cpu", "threads": 1,
        "checkpoint_every_steps": 2, "monitor_every": 0,
    },
    "evaluate": {
        "image_size": 16, "labels": ["shape"], "tasks": ["linear", "knn", "spectrum"], "seeds": 1,
        "linear": {"epochs": 2, "learning_rates": [0.01], "weight_decays": [0.0]},
        "knn": {"k": 3},
    },
}  # fmt: skip
#: Makes a study one run.
ONE_ARM = {"axes": {"data.noise.rate": [0.0]}, "references": {}}


def make_world(folder: Path) -> Path:
    """Write the shards, the base config and the study's YAML; return the folder."""
    write_shards(
        folder / "shards",
        36,
        captions=lambda i: [caption(f"a {'round' if i % 2 else 'square'} thing {i}")],
        split=lambda i: "train" if i < 24 else "test",
        meta=lambda i: {"shape": "circle" if i % 2 else "square"},
    )
    (folder / "base.yaml").write_text(yaml.safe_dump(TINY))
    config = study(folder).model_dump(mode="json")
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return folder


def study(folder: Path, **changes: object) -> StudyConfig:
    """Return a study in a folder, of two noise rates and I-JEPA unless changed."""
    data: dict[str, object] = {
        "run": str(folder / "study"),
        "base": str(folder / "base.yaml"),
        "shards": str(folder / "shards"),
        "x": "data.noise.rate",
        "set": ["data.noise.kind=derangement"],
        "axes": {"data.noise.rate": [0.0, 1.0]},
        "references": {"I-JEPA": ["model.text=null", "data.noise.kind=none"]},
        "seeds": [0],
        **changes,
    }
    return build(StudyConfig, data)


def opened(world: Path, **changes: object) -> StudyConfig:
    """Return the study of a folder's YAML, with command-line overrides."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load(StudyConfig, world / "study.yaml", overrides)


def command(folder: Path) -> list[str]:
    """Return the command that runs a folder's study."""
    return [sys.executable, "-m", "tcjepa", "ablate", str(folder / "study.yaml")]
