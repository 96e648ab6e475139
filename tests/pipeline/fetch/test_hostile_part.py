"""All attacks in one list, downloaded as a part by a process whose memory is watched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.fetch.deadline import Deadline
from pipeline.part import cut
from pipeline.settings import build
from pipeline.sources.urls import UrlsConfig, UrlsSource
from pipeline.stages.download import DownloadConfig, download
from pipeline.stages.failures import FAILURES
from pipeline.stages.task import Task
from pipeline.storage import Directory
from tests.peak_memory import peak_rss
from tests.pipeline.fetch.attacks import ATTACKS, MAX_BYTES
from tests.pipeline.fetch.pictures import CLAIMS, OTHERS, picture
from tests.pipeline.fetch.web import HostileWeb, answers

THREADS = 16
DEADLINE = 3  # seconds: enough for what ends by its size, on a busy machine too
MAX_PIXELS = 1_000_000
GOOD = {kind: picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
#: X-Robots-Tag headers, and whether each is meant for us.
OPT_OUTS = {
    "noai": True,
    "NoImageAI, nofollow": True,
    "tcjepa: noindex": True,
    "googlebot: noindex": False,
    "otherbot: noai, noimageai": False,
    "nofollow": False,
    "unavailable_after: 25 Jun 2010 15:00:00 PST": False,
}


def expected(web: HostileWeb, canary: int) -> list[tuple[str, str | None]]:
    """Serve everything; return (URL, reason) of every row."""
    rows = []
    for name, attack in ATTACKS.items():
        url = attack.prepare(name, web, canary)
        # The source lets no other scheme through; a harmless answer to an attack is no picture.
        refused = not url.lower().startswith("http")
        rows.append((url, "bad_url" if refused else attack.reason or "not_an_image"))
    bodies: list[tuple[str, bytes, str | None]] = [
        *((name, data, "too_many_pixels") for name, data in CLAIMS.items()),
        *((name, *other) for name, other in OTHERS.items()),
        *((name, data, None) for name, data in GOOD.items()),
        ("../../../outside.jpg", GOOD["JPEG"], None),
        ("%2e%2e%2f%2e%2e%2foutside.jpg", GOOD["JPEG"], None),
    ]
    for number, (name, data, reason) in enumerate(bodies):
        path = f"/{number}/" + name.replace(" ", "-")
        rows.append((web.serve(path, answers(data)), reason))
    for number, (directive, ours) in enumerate(OPT_OUTS.items()):
        tagged = answers(GOOD["JPEG"], f"X-Robots-Tag: {directive}")
        reason = "opted_out" if ours else None
        rows.append((web.serve(f"/opt-out/{number}", tagged), reason))
    return rows


def fetch_part(folder: Path, table: str, name: str, port: int) -> dict[str, Any]:
    """Download a list as a part; return the report's counts, seconds, and the memory peak."""
    source = UrlsSource(UrlsConfig(paths=table, caption_columns=[]))
    run = Directory(folder / name)
    (part,) = cut(run, source, 10_000)
    config = build(
        DownloadConfig,
        {
            "threads": THREADS,
            "timeout": 0.5,
            "deadline_s": DEADLINE,
            "retries": 0,
            "max_bytes": MAX_BYTES,
            "max_pixels": MAX_PIXELS,
            "allow_private_hosts": [f"127.0.0.1:{port}"],
        },
    )
    began = time.monotonic()
    report = download(Task(run, "download", "mark"), part, source, config)
    return {"counts": report.counts, "seconds": time.monotonic() - began, "peak": peak_rss()}


def run_in_child(folder: Path, urls: list[str], port: int) -> list[dict[str, Any]]:
    """Download a part of one picture, which loads everything, then the list; return the reports."""
    lists = {"warm-up": urls[-1:], "hostile": urls}
    program = [sys.executable, "-c", _CHILD, str(folder), str(port)]
    for name, listed in lists.items():
        lines = "".join(json.dumps({"url": url}) + "\n" for url in listed)
        (folder / f"{name}.jsonl").write_text(lines)
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"counts"')]


_CHILD = """
import json, sys
from pathlib import Path
from tests.pipeline.fetch.test_hostile_part import fetch_part

folder = Path(sys.argv[1])
for name in ("warm-up", "hostile"):
    table = str(folder / f"{name}.jsonl")
    print(json.dumps(fetch_part(folder, table, name, int(sys.argv[2]))), flush=True)
"""


@pytest.fixture
def rows(hostile: HostileWeb, canary: int) -> list[tuple[str, str | None]]:
    return expected(hostile, canary)


def test_a_part_of_nothing_but_attacks(
    rows: list[tuple[str, str | None]], hostile: HostileWeb, tmp_path: Path
) -> None:
    urls = [url for url, _ in rows]
    before, after = run_in_child(tmp_path, urls, hostile.port)

    table = pq.read_table(tmp_path / "hostile" / "tables" / "download" / "00000.parquet")
    found = list(zip(table["url"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert [reason for _, reason in found] == [reason for _, reason in rows], _differences(
        found, rows
    )
    classes = [FAILURES[reason][0] if reason else None for _, reason in rows]
    assert table["failure"].to_pylist() == classes

    failed = len(rows) - classes.count(None)
    assert after["counts"] == {"rows": len(rows), "failed": failed}
    stats = json.loads((tmp_path / "hostile" / "raw" / "00000_stats.json").read_text())
    # Some of the bad URLs the source refused, the others the opener.
    assert stats["count"] >= sum(reason != "bad_url" for _, reason in rows)
    assert stats["successes"] == classes.count(None)
    assert stats["count"] == (
        stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]
    )

    # Each slow row takes its deadline, THREADS of them at a time; none holds the part for longer.
    slow = sum(reason in ("deadline", "timeout") for _, reason in rows)
    assert after["seconds"] <= (slow / THREADS + 1) * (DEADLINE + 2) + 20
    # As documented: three bodies per thread, and one decoded picture.
    bound = 3 * THREADS * MAX_BYTES + 20 * MAX_PIXELS
    assert after["peak"] - before["peak"] <= bound

    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {"warm-up", "hostile", "warm-up.jsonl", "hostile.jsonl"}
    with tarfile.open(tmp_path / "hostile" / "raw" / "00000.tar") as tar:
        assert all(re.fullmatch(r"\d{11}\.(jpg|json)", name) for name in tar.getnames())


def _differences(found: list[Any], rows: list[Any]) -> str:
    pairs = zip(found, rows, strict=True)
    lines = [f"{url[:80]!r}: {was}, expected {due}" for (url, was), (_, due) in pairs if was != due]
    return "\n".join(lines)


def test_a_deadline_counts_what_it_is_given() -> None:
    deadline = Deadline(60, 10)
    assert deadline.wait() == 10
    assert 0 < Deadline(5, 10).wait() <= 5
    assert Deadline(60, 10).expired("x").reason == "timeout"
    assert Deadline(0, 10).expired("x").reason == "deadline"
