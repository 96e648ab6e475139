"""The walls between rooms: who may import what, and what an import may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = (
    "pipeline.gpus",
    "pipeline.schema",
    "pipeline.settings",
    "pipeline.storage",
    "pipeline.progress",
    "pipeline.timing",
)
LIGHT = {"pyarrow", "pydantic", "pydantic_core", "omegaconf", "yaml", "fsspec", "rich"}


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute name of every module a file imports, at any depth."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            # `from pipeline import schema` imports pipeline.schema.
            known = [name for name in names if _is_module(name)]
            yield from known or [base]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 20
    return found


def test_the_trainer_takes_only_the_shared_modules_from_the_pipeline() -> None:
    taken = {
        (str(path.relative_to(ROOT)), name)
        for path in files("tcjepa")
        for name in imports(path)
        if name.split(".")[0] == "pipeline"
    }
    assert {name for _, name in taken} & set(SHARED), "the search finds nothing"
    assert [item for item in sorted(taken) if item[1] not in SHARED] == []


def test_the_pipeline_never_imports_the_trainer() -> None:
    wrong = [
        (str(path.relative_to(ROOT)), name)
        for path in files("pipeline")
        for name in imports(path)
        if name.split(".")[0] == "tcjepa"
    ]
    assert wrong == []


@pytest.mark.parametrize("module", SHARED)
def test_shared_modules_need_little(module: str) -> None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    others = {name for name in imports(path) if not name.startswith(SHARED)}
    roots = {name.split(".")[0] for name in others}
    assert roots - LIGHT <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            ["pipeline.cli", "pipeline.config", "pipeline.run", "pipeline.status"],
            {"torch", "transformers", "spacy", "tcjepa"},
        ),
        (
            # img2dataset itself, at the first fetch, loads webdataset and that any torch there is.
            ["pipeline.stages.download", "pipeline.stages.filter", "pipeline.stages.pack"],
            {"torch", "transformers", "spacy", "tcjepa"},
        ),
        (list(SHARED), {"torch", "dask", "distributed", "cv2", "numpy.random", "img2dataset"}),
        (
            ["tcjepa.cli", "tcjepa.data.loader"],
            {"dask", "distributed", "spacy", "img2dataset"},
        ),
    ],
    ids=["pipeline", "download worker", "shared", "trainer"],
)
def test_an_import_loads_no_heavy_library(modules: list[str], forbidden: set[str]) -> None:
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert set(modules) <= loaded
    assert loaded & forbidden == set()
