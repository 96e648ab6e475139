"""`python -m tcjepa bench --quick`: every row is there, and the numbers fit together."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.timing import Bench, Row
from tcjepa.bench.images import photograph
from tcjepa.bench.stepping import peak_flops
from tcjepa.cli import main

ROWS = {
    "JPEG decode": {"simplejpeg", "OpenCV", "torchvision.io", "Pillow"},
    "decode and crop": {"ours", "Pillow + torchvision"},
    "index plan": {"ours, by windows", "torch.randperm, at once"},
    "loader": {"ours", "webdataset + Pillow + torchvision"},
    "model step, demo config": {"TC-JEPA", "I-JEPA"},
}


def test_quick_bench_reports_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A compiled ViT-B is no quick thing; where there is a GPU, `make bench` measures it.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    target = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--json", str(target)]) == 0
    table = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["quick"] is True
    assert found["command"][-2:] == ["--json", str(target)]
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert found["hardware"]["cpu"] and found["hardware"]["memory_gib"] > 0
    assert {b["name"]: {r["name"] for r in b["rows"]} for b in found["benches"]} == ROWS
    for bench in found["benches"]:
        check(bench)
        assert f"{bench['name']} [{bench['unit']}]" in table
        assert all(f"  {row['name']} " in table for row in bench["rows"])


def check(bench: dict[str, Any]) -> None:
    """Check that medians and ratios follow from the rates of the rounds."""
    (base,) = (row for row in bench["rows"] if row["name"] == bench["baseline"])
    for row in bench["rows"]:
        assert all(rate > 0 for rate in row["rates"])
        assert len(row["rates"]) == len(base["rates"])
        assert row["rate"] == pytest.approx(statistics.median(row["rates"]))
        assert row["ratio"] == pytest.approx(row["rate"] / base["rate"])
        low, high = row["ratio_range"]
        assert low <= high
        assert row["mfu"] is None


def test_an_unwritable_target_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--json", str(tmp_path / "none" / "bench.json")]) == 2
    captured = capsys.readouterr()
    assert "--json" in captured.err and captured.out == ""


def test_ratio_spread_and_mfu() -> None:
    ours = Row("ours", (30.0, 10.0, 20.0), flops_per_item=2.0)
    theirs = Row("theirs", (10.0, 10.0, 5.0))
    bench = Bench("b", "items/s", "theirs", (ours, theirs), peak_flops=400.0)
    assert bench.ratio(ours) == 2.0
    assert bench.spread(ours) == (1.0, 4.0)
    assert bench.mfu(ours) == 0.1
    assert bench.mfu(theirs) is None
    assert "2.00x (1.00-4.00)  MFU 10.0%" in bench.table()


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Some GPU", None)],
)
def test_peak_is_known_by_name(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_photographs_differ_and_fall_off_with_frequency() -> None:
    image = photograph(1, 64)
    assert (image == photograph(1, 64)).all()
    assert (image != photograph(2, 64)).any()
    power = abs(torch.fft.fft2(torch.tensor(image.mean(2)))) ** 2
    assert power[1:4, 1:4].mean() > 30 * power[24:32, 24:32].mean()
