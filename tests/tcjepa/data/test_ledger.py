import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.data.batch import Batch
from tcjepa.data.ledger import SubstitutionLedger, TooManyUnreadableError

G = 10


def batch_of(position: int, bad: list[str], size: int = G) -> Batch:
    return Batch(
        images=torch.empty(size, 3, 1, 1, dtype=torch.uint8),
        captions=[[] for _ in range(size)],
        rows=torch.zeros(size, dtype=torch.int64),
        position=position,
        replaced=[(uid, "broken") for uid in bad],
    )


def lines(path: Path) -> list[tuple[int, str]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["position"], line["uid"]) for line in found]


def run_steps(ledger: SubstitutionLedger, steps: range, bad: dict[int, list[str]]) -> None:
    ledger.begin(steps.start * G)
    for step in steps:
        ledger.record(batch_of(step * G, bad.get(step, [])), G)


@settings(max_examples=60)
@given(
    st.dictionaries(st.integers(0, 19), st.lists(st.sampled_from("abc"), max_size=3)),
    st.lists(st.tuples(st.integers(0, 19), st.integers(1, 8)), max_size=4),
)
def test_kills_and_resumes_leave_the_lines_of_one_run(
    tmp_path_factory: pytest.TempPathFactory,
    bad: dict[int, list[str]],
    kills: list[tuple[int, int]],
) -> None:
    """Each (start, steps) is a run that was killed after some steps beyond its checkpoint."""
    path = tmp_path_factory.mktemp("ledger") / "run" / "unreadable.jsonl"
    reached = 0
    for checkpoint, steps in kills:
        start = min(checkpoint, reached)
        stop = min(start + steps, 20)
        run_steps(SubstitutionLedger(path, 1.0), range(start, stop), bad)
        reached = max(reached, stop)
    last = SubstitutionLedger(path, 1.0)
    start = min(7, reached)
    run_steps(last, range(start, 20), bad)
    run_steps(last, range(start, 20), bad)  # and iterated a second time
    expected = sorted((step * G, uid) for step, uids in bad.items() for uid in uids)
    assert (sorted(lines(path)) if path.exists() else []) == expected
    assert (last.replaced, last.seen) == (len(expected), 20 * G)


def test_limit_is_a_share_of_at_least_a_hundred() -> None:
    for bad, message in ((1, None), (2, r"2 of 10 samples.*max_bad_share = 0.01")):
        ledger = SubstitutionLedger(None, 0.01)
        if message is None:
            ledger.record(batch_of(0, ["a"] * bad))
            continue
        with pytest.raises(TooManyUnreadableError, match=message):
            ledger.record(batch_of(0, ["a"] * bad))
    ledger = SubstitutionLedger(None, 0.01)
    for step in range(100):
        ledger.record(batch_of(step * G, ["a"] if step % 10 == 9 else []))
    with pytest.raises(TooManyUnreadableError, match="11 of 1010"):
        ledger.record(batch_of(1000, ["a"]))


def test_limit_of_one_never_stops() -> None:
    ledger = SubstitutionLedger(None, 1.0)
    for step in range(20):
        ledger.record(batch_of(step * G, ["a"] * 2 * G))
    assert ledger.replaced == 2 * ledger.seen


def test_counts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "unreadable.jsonl"
    first = SubstitutionLedger(path, 0.01)
    run_steps(first, range(5), {2: ["a"]})
    with pytest.raises(TooManyUnreadableError, match="2 of 60 samples"):
        run_steps(SubstitutionLedger(path, 0.01), range(5, 6), {5: ["b"]})


def test_ranks_are_judged_together(tmp_path: Path) -> None:
    """Two ranks with one bad sample each: neither alone is over the limit."""
    path = tmp_path / "unreadable.jsonl"
    ranks = [SubstitutionLedger(path, 0.01) for _ in range(2)]
    for ledger in ranks:
        ledger.begin(0)
    ranks[0].record(batch_of(0, ["a"], G // 2), G)
    ranks[1].record(batch_of(0, [], G // 2), G)
    with pytest.raises(TooManyUnreadableError, match="2 of 20 samples"):
        ranks[1].record(batch_of(G, ["b"], G // 2), G)


def test_a_faster_rank_is_not_counted_early(tmp_path: Path) -> None:
    path = tmp_path / "unreadable.jsonl"
    ahead, behind = SubstitutionLedger(path, 1.0), SubstitutionLedger(path, 1.0)
    ahead.begin(0)
    behind.begin(0)
    for step in range(3):
        ahead.record(batch_of(step * G, ["a"], G // 2), G)
    for step in range(3):
        behind.record(batch_of(step * G, ["b"], G // 2), G)
        assert (behind.replaced, behind.seen) == (2 * (step + 1), G * (step + 1))


def test_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "unreadable.jsonl"
    path.write_text('{"position": 0, "uid": "a", "reason": "x"}\n{"position": 0, "u')
    ledger = SubstitutionLedger(path, 1.0)
    run_steps(ledger, range(1, 2), {1: ["b"]})
    assert ledger.replaced == 2
    again = SubstitutionLedger(path, 1.0)
    again.begin(2 * G)
    assert again.replaced == 2


def _append(path: Path, rank: int, barrier: Any) -> None:
    ledger = SubstitutionLedger(path, 1.0)
    ledger.begin(0)
    barrier.wait()
    for step in range(100):
        ledger.record(batch_of(step * 4 * G, [f"{rank}-{i}" for i in range(3)]), 4 * G)


def test_processes_do_not_cut_into_each_others_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path, barrier = tmp_path / "unreadable.jsonl", context.Barrier(4)
    processes = [context.Process(target=_append, args=(path, n, barrier)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(lines(path)) == sorted(
        (step * 4 * G, f"{rank}-{i}") for step in range(100) for rank in range(4) for i in range(3)
    )
