"""The Makefile's targets name files that are there, and commands whose configs are valid."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.settings import load
from tcjepa.ablate.reduced import names

ROOT = Path(__file__).parents[1]
TARGETS = [["shards"], ["pretrain"], ["ablation"], ["ablation", "STUDY=all"], ["test"], ["check"]]


def planned(folder: Path, *words: str) -> list[str]:
    """Return the lines that make would run in a clone that was set up, and has nothing else."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("data_configs", "tcjepa"):
        (folder / name).symlink_to(ROOT / name)
    ready = folder / ".venv" / ".ready"
    ready.parent.mkdir()
    ready.touch()
    done = subprocess.run(
        ["make", "-n", *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_every_file_that_a_target_names_is_there(words: list[str], tmp_path: Path) -> None:
    lines = planned(tmp_path, *words)
    assert lines
    named = {path for line in lines for path in re.findall(r"\S+\.yaml", line)}
    made = {path for path in named if path.startswith("runs/")}
    assert made <= {"runs/ablation/derangement/noisy.yaml"}  # by the command before
    for path in named - made:
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("words", TARGETS[:4], ids=" ".join)
def test_every_pipeline_command_has_a_config_that_holds(words: list[str], tmp_path: Path) -> None:
    commands = [
        shlex.split(line) for line in planned(tmp_path, *words) if "pipeline shards" in line
    ]
    assert commands
    for command in commands:
        config, *overrides = command[command.index("shards") + 1 :]
        if not config.startswith("runs/"):
            load(PipelineConfig, ROOT / config, overrides)


def test_all_studies_are_run_by_name(tmp_path: Path) -> None:
    lines = "\n".join(planned(tmp_path, "ablation", "STUDY=all"))
    for name in names():
        assert f"tcjepa ablate {name} --reduced" in lines, name
