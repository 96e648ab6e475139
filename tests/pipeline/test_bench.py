"""`python -m pipeline bench --quick`: every row is there, and the numbers fit together."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench.busy import busy_seconds
from pipeline.bench.photos import photograph
from pipeline.cli import main
from pipeline.filters.image import measure_image

FETCHING = {
    "requests alone",
    "img2dataset alone",
    "Dask download stage",
    "whole pipeline, no captioner",
}
ROWS = {
    "measures and scores": {
        "JPEG decode (an image)",
        "image measures (an image)",
        "alignment features (an image)",
        "caption measures (a caption)",
        "wording (a caption)",
        "alignment features (a caption)",
    },
    "planning a finished run": {"2 parts", "20 parts"},
    "re-selecting": {"select from 2,000 rows", "select from 20,000 rows"},
    "fetching 8 photographs": FETCHING,
    "fetching 8 photographs: work": FETCHING,
    "fetching 24 small scenes": FETCHING,
    "fetching 24 small scenes: work": FETCHING,
    "captioning": {
        "generate alone, inputs laid out",
        "plain loop, one thing after the other",
        "our captioner",
    },
}


def test_quick_bench_reports_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--json", str(target)]) == 0
    table = capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["command"][-3:] == ["--quick", "--json", str(target)]
    assert found["versions"]["img2dataset"].startswith("1.")
    assert found["hardware"]["cpu"] and found["hardware"]["memory_gib"] > 0
    assert {b["name"]: {r["name"] for r in b["rows"]} for b in found["benches"]} == ROWS
    small, large = found["scaling"]
    assert (small["rows"], large["rows"]) == (20, 200)
    assert min(small["seconds"], large["seconds"], small["driver_mib"]) > 0
    assert "10x the rows" in table
    for bench in found["benches"]:
        assert f"{bench['name']} [{bench['unit']}]" in table
        (base,) = (row for row in bench["rows"] if row["name"] == bench["baseline"])
        for row in bench["rows"]:
            assert f"  {row['name']} " in table
            assert all(rate > 0 for rate in row["rates"])
            assert len(row["rates"]) == len(base["rates"])
            assert row["rate"] == pytest.approx(statistics.median(row["rates"]))
            assert row["ratio"] == pytest.approx(row["rate"] / base["rate"])


def test_work_of_ended_children_and_of_their_children_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    before = busy_seconds()
    subprocess.run([sys.executable, "-c", nested], check=True)
    assert busy_seconds() - before >= 0.25  # CPU time, whatever else the machine does


def test_photographs_cost_what_photographs_cost_and_differ() -> None:
    made = [photograph(number) for number in range(4)]
    assert all(100_000 < len(data) < 500_000 for data in made)
    hashes = [measure_image(data).phash or 0 for data in made]
    pairs = itertools.combinations(hashes, 2)
    assert all((one ^ other).bit_count() > 8 for one, other in pairs)


def test_an_unwritable_target_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--json", str(tmp_path / "none" / "bench.json")]) == 2
    captured = capsys.readouterr()
    assert "--json" in captured.err and captured.out == ""
