"""Worst hosts: exact while they fit, bounded and honest beyond."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from pipeline.report.hosts import HostCounter


def add(counter: HostCounter, urls: list[str | None], reasons: list[str | None]) -> None:
    counter.add(
        pa.chunked_array([urls], pa.string()), pa.chunked_array([reasons], pa.string())
    )  # fmt: skip


def test_counts_are_exact_while_the_hosts_fit() -> None:
    generator = np.random.default_rng(1)
    names = [f"h{n}.example" for n in range(30)]
    urls = [f"https://u:p@{names[n].upper()}/x?y" for n in generator.integers(0, 30, 2000)]
    reasons = [None if r < 0.6 else f"r{r:.1f}" for r in generator.random(2000)]
    counter = HostCounter()
    for start in range(0, 2000, 100):
        add(counter, urls[start : start + 100], reasons[start : start + 100])
    rows = Counter(url.split("@")[1].split("/")[0].lower() for url in urls)
    failed: dict[str, Counter[str]] = {name: Counter() for name in names}
    for url, reason in zip(urls, reasons, strict=True):
        if reason:
            failed[url.split("@")[1].split("/")[0].lower()][reason] += 1
    worst = counter.worst(30)
    assert [host.failed for host in worst] == sorted(
        (sum(c.values()) for c in failed.values()), reverse=True
    )
    for host in worst:
        assert host.rows == rows[host.name]
        assert host.failed == sum(failed[host.name].values())
        assert failed[host.name][host.top_reason] == max(failed[host.name].values())
    assert counter.missed == 0


def test_memory_is_bounded_and_what_may_be_missed_is_said() -> None:
    counter = HostCounter(capacity=50)
    truth: Counter[str] = Counter()
    for part in range(40):
        names = [f"once{part}-{n}.example" for n in range(200)]
        names += ["bad.example"] * 5 + ["a.example"] * (part % 2)
        truth.update(names)
        add(counter, [f"http://{name}/" for name in names], ["dns"] * len(names))
        assert len(counter) <= 50
    worst = counter.worst(50)
    assert (worst[0].name, worst[0].failed) == ("bad.example", 200)
    counted = {host.name: host.failed for host in worst}
    assert counter.missed <= 40
    assert all(truth[name] <= counted.get(name, 0) + counter.missed for name in truth)


def test_rows_without_a_host_are_passed_over() -> None:
    counter = HostCounter()
    add(counter, [None, "a.png", "", "http://"], ["missing_url", None, "bad_url", "bad_url"])
    assert counter.worst(5) == []
    assert len(counter) == 0
