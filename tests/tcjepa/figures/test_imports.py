"""Runs and studies become result files that pages can be made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tcjepa.evaluate.report import EvaluationResult
from tcjepa.evaluation import TRAINED, UNTRAINED, to_json
from tcjepa.figures.__main__ import main
from tests.tcjepa.evaluate.test_report import agreement, result


@pytest.fixture
def run(tmp_path: Path) -> Path:
    trained: EvaluationResult = replace(result(0.7), agreement=agreement())
    content = to_json({TRAINED: trained, UNTRAINED: result(0.4, 0.04)}, step=9)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "evaluation.json").write_text(
        json.dumps(content | {"hardware": "a CPU, 2 cores", "minutes": 6.5, "settings": {}})
    )
    return folder


def test_a_run_becomes_a_table_of_both_encoders(
    run: Path, repository: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = repository("<!-- table: demo.json encoders -->\n<!-- /table -->\n")
    file = root / "docs/results/demo.json"
    assert main(["import", str(run), str(file), "--command", "make pretrain"]) == 0
    content = json.loads(file.read_text())
    assert (content["command"], content["hardware"]) == ("make pretrain", "a CPU, 2 cores")
    assert (content["minutes"], content["step"]) == (6.5, 9)
    assert main(["--root", str(root)]) == 0
    assert (root / "docs/page.md").read_text().splitlines()[1:-1] == [
        "|  | trained | random weights | difference |",
        "|---|---|---|---|",
        "| linear shape, % | 70.0 ± 3.0 | 40.0 ± 4.0 | 30.0 ± 5.0 |",
        "| mIoU, % | 70.0 ± 3.0 | 40.0 ± 4.0 | 30.0 ± 5.0 |",
        "| kNN shape, % | 50.0 ± 22.4 | 50.0 ± 22.4 | 0.0 ± 31.6 |",
        "| effective rank of 192 | 12.3 | 12.3 | — |",
        "| prediction error, right captions | 4.000 ± 0.010 | — | — |",
        "| prediction error, swapped captions | 4.041 ± 0.010 | — | — |",
        "| prediction error, no captions | 4.100 ± 0.010 | — | — |",
        "| text gain | 0.041 ± 0.010 | — | — |",
    ]
    assert "docs/page.md: 1 passages updated" in capsys.readouterr().out


def test_a_study_is_copied_as_it_is(tmp_path: Path) -> None:
    text = '{"command": "c",\n "date": "2026-01-01", "hardware": "h"}\n'
    (tmp_path / "result.json").write_text(text)
    assert main(["import", str(tmp_path), str(tmp_path / "noise.json")]) == 0
    assert (tmp_path / "noise.json").read_text() == text
    refused = ["import", str(tmp_path), str(tmp_path / "x.json"), "--hardware", "other"]
    assert main(refused) == 2
    assert not (tmp_path / "x.json").exists()


def test_what_cannot_be_imported_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    assert main(["import", str(run), str(file)]) == 2
    assert "does not say its command: give --command" in capsys.readouterr().err
    assert main(["import", str(tmp_path), str(file), "--command", "c"]) == 2
    assert "holds neither evaluation.json" in capsys.readouterr().err
    assert main(["import", str(run), str(tmp_path / "no/x.json"), "--command", "c"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not file.exists()
