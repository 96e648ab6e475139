"""`status` of finished, running, killed and damaged runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.funnel import format_funnel
from pipeline.report.page import build_report
from pipeline.settings import ConfigError
from pipeline.status import describe_run
from pipeline.storage import Directory
from tests.pipeline.runs import ROWS, command, free_port, wait_for_work, without_coverage


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a way to get a private copy of the undisturbed run, to damage."""

    def copy() -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copy


def reasons(run: Path) -> list[str]:
    """Return why each row of a run failed or was dropped."""
    found: list[str] = []
    for stage in ("download", "select", "choose"):
        for path in sorted((run / "tables" / stage).glob("0*.parquet")):
            found += [r for r in pq.read_table(path, columns=["reason"])["reason"].to_pylist() if r]
    return found


def test_a_finished_run_shows_its_funnel_and_ten_examples_per_reason(run: Path) -> None:
    text = describe_run(str(run))
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    assert f"{ROWS} rows in 4 parts, finished" in text
    assert "4 of 4 parts" in text
    assert format_funnel(manifest["funnel"]) in text
    assert "time left" not in text
    blocks = {block.split(":")[0]: block for block in text.split("\n\n")}
    for reason in set(reasons(run)):
        block = next(v for k, v in blocks.items() if re.search(rf"(failed|dropped), {reason}$", k))
        shown = [line for line in block.splitlines() if line.startswith("  row ")]
        assert len(shown) == min(10, reasons(run).count(reason))
    foreign = next(v for k, v in blocks.items() if k.endswith("alt text dropped, not_english"))
    finding = r"probability of English 0\S*, at least [\d.]+"
    assert re.search(rf"row \d+ +{finding}  “.+”  http://", foreign)


def test_examples_can_be_left_out_and_are_the_same_every_time(run: Path) -> None:
    assert "  row " not in describe_run(str(run), examples=False)
    assert describe_run(str(run)) == describe_run(str(run))


def test_a_run_that_stopped_early_says_how_far_it_came(copied: Callable[[], Path]) -> None:
    run = copied()
    (run / "shards" / "manifest.json").unlink()
    shutil.rmtree(run / "tables" / "choose")
    shutil.rmtree(run / "tables" / "score")
    (run / "tables" / "recaption" / "00002.parquet").unlink()
    text = describe_run(str(run))
    assert "not finished" in text
    assert re.search(r"recaption +3 of 4 parts", text)
    assert re.search(r"score +0 of 4 parts", text)
    assert re.search(r"waiting for choose +\d+", text)
    assert re.search(r"time left: about [\d.]+ ", text)


def test_tables_of_an_earlier_config_do_not_count_while_a_run_goes_on(
    copied: Callable[[], Path],
) -> None:
    run = copied()
    config = (run / "config.yaml").read_text()
    assert "min_side: 64" in config
    (run / "config.yaml").write_text(config.replace("min_side: 64", "min_side: 65"))
    (run / "dashboard.json").write_text(json.dumps({"link": "http://h/status", "pid": 1}))
    text = describe_run(str(run))
    assert "running, dashboard http://h/status" in text
    assert re.search(r"download +4 of 4 parts", text)
    assert re.search(r"recaption +0 of 4 parts", text)
    assert "waiting for select" in text


def test_a_dashboard_that_a_killed_run_left_is_not_shown(copied: Callable[[], Path]) -> None:
    run = copied()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run / "dashboard.json").write_text(json.dumps({"link": "http://h/status", "pid": gone.pid}))
    assert "http://h/status" not in describe_run(str(run))
    (run / "dashboard.json").write_text('{"link": ')
    assert "finished" in describe_run(str(run))
    (run / "dashboard.json").write_text(json.dumps({"link": None, "pid": os.getppid()}))
    assert "running" in describe_run(str(run))


def test_errors_are_listed_without_their_control_characters(copied: Callable[[], Path]) -> None:
    run = copied()
    event = {"time": 1e9, "stage": "filter", "part": "00003", "seconds": 0, "bytes": 0}
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({**event, "counts": {}, "error": "OSError: \x1b[2J disk"}) + "\n")
    text = describe_run(str(run))
    assert "failed: filter 00003 (1 tries): OSError: ⟨U+001B⟩[2J disk" in text
    assert "the tables have changed since" in text


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Path]:
    """A run that is going on."""
    folder = tmp_path / "going"
    process = subprocess.Popen(
        command(folder, free_port(), "source.train=400", "cluster.workers=1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=without_coverage(),
    )
    try:
        wait_for_work(folder, process, 0.0)
        yield folder
        assert process.poll() is None, "the run ended before it was looked at"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_run_can_be_watched(going: Path) -> None:
    deadline = time.monotonic() + 120
    text = ""
    while not re.search(r"download +[1-9]\d* of 15 parts", text):
        assert time.monotonic() < deadline, text
        text = describe_run(str(going))
        time.sleep(0.1)
    assert "430 rows in 15 parts, running" in text
    assert "so far:" in text
    assert "waiting for select" in text
    assert "Curation report" in build_report(Directory(going))


def test_no_run_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        describe_run(str(tmp_path))
