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
from tcjepa.bench.loader_run import recommend
from tcjepa.bench.stepping import peak_flops
from tcjepa.cli import main
from tests.tcjepa.shards import write_shards

ROWS = {
    "JPEG decode": {"simplejpeg", "OpenCV", "torchvision.io", "Pillow"},
    "decode and crop": {"ours", "Pillow + torchvision"},
    "index plan": {"ours, by windows", "torch.randperm, at once"},
    "loader, one core": {
        "ours",
        "crops left to the device to resize",
        "bare decode and resize",
        "bare, one decode buffer",
        "webdataset + Pillow + torchvision",
    },
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


STOCK = "webdataset + Pillow + torchvision"


def test_loader_bench_on_own_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "shards", 40, image_format="png", size=(300, 280))
    target = tmp_path / "bench.json"
    words = ["--shards", str(tmp_path / "shards"), "--workers", "0", "1", "--json", str(target)]
    assert main(["bench", "loader", "--quick", *words]) == 0
    found = json.loads(target.read_text())
    rows = {b["name"]: {r["name"] for r in b["rows"]} for b in found["benches"]}
    # No JPEG, so no bare loop.
    assert rows["loader, one core"] == {"ours", "crops left to the device to resize", STOCK}
    assert rows["loader, worker processes"] == {
        f"{name}, {count} workers" for name in ("ours", STOCK) for count in (0, 1)
    }
    assert rows["decode and crop, 512 px"] >= {"ours", "Pillow + torchvision"}
    for bench in found["benches"]:
        check(bench)
    assert found["found"]["data.workers"] in (0, 1)
    assert found["found"][f"ours / {STOCK}"] > 0
    assert "data.workers: " in capsys.readouterr().out


def test_loader_bench_without_webdataset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)  # cannot be imported, as on GPU machines
    assert main(["bench", "loader", "--quick", "--rounds", "1", "--workers", "0"]) == 0
    table = capsys.readouterr().out
    assert "webdataset is not installed here: the stock loader is left out" in table
    assert STOCK not in table and "ours / bare decode and resize: " in table


@pytest.mark.parametrize(
    "words",
    [["--rounds", "0"], ["--workers", "-1"], ["--shards", "nowhere"], ["--json", "no/where.json"]],
)
def test_loader_bench_refuses(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path / word) if word == "nowhere" else word for word in words]
    assert main(["bench", "loader", "--quick", *words]) == 2
    assert "error: " in capsys.readouterr().err


def test_advice_follows_from_the_rows() -> None:
    one = Bench(
        "loader, one core", "", STOCK,
        (Row("ours", (40.0, 90.0, 80.0)), Row("bare decode and resize", (50.0, 100.0, 100.0)),
         Row(STOCK, (10.0, 30.0, 10.0))),
    )  # fmt: skip
    many = Bench(
        "loader, worker processes", "", "ours, 0 workers",
        (Row("ours, 0 workers", (5.0,)), Row("ours, 2 workers", (9.0,)),
         Row(f"{STOCK}, 2 workers", (3.0,))),
    )  # fmt: skip
    assert recommend([one, many]) == {
        f"ours / {STOCK}": 4.0,
        "ours / bare decode and resize": 0.8,
        "data.workers": 2,
        f"ours / {STOCK}, 2 workers": 3.0,
    }


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
