from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.data.loader import Tasks
from tcjepa.data.plan import EpochPlan, LoaderState, Plan, Tail, samples_per_epoch

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SEED = st.integers(0, 2**40)
WINDOW = st.integers(1, 14)


def make_plan(sizes: list[int], seed: int = 0, window: int = 3, selection: str = "s") -> Plan:
    return Plan(np.array(sizes, dtype=np.int64), selection, seed, window)


def plain_epoch(sizes: list[int], seed: int, epoch: int, window: int) -> list[int]:
    """The whole epoch at once, with lists: what `EpochPlan` computes window by window."""
    firsts = [sum(sizes[:shard]) for shard in range(len(sizes))]
    shards = keyed.permutation(keyed.key("shards", seed, epoch), len(sizes)).tolist()
    order: list[int] = []
    for number, start in enumerate(range(0, len(shards), window)):
        rows = [firsts[s] + i for s in shards[start : start + window] for i in range(sizes[s])]
        places = keyed.permutation(keyed.key("window", seed, epoch, number), len(rows))
        order += [rows[place] for place in places.tolist()]
    return order


@given(SIZES, SEED, st.integers(0, 5), WINDOW)
def test_epoch_equals_the_plain_reference(
    sizes: list[int], seed: int, epoch: int, window: int
) -> None:
    plan = EpochPlan(np.array(sizes, dtype=np.int64), seed, epoch, window)
    assert len(plan) == sum(sizes)
    assert plan.rows(0, len(plan)).tolist() == plain_epoch(sizes, seed, epoch, window)


@given(SIZES, SEED, WINDOW)
def test_every_row_once_per_epoch(sizes: list[int], seed: int, window: int) -> None:
    plan = make_plan(sizes, seed, window)
    for epoch in range(3):
        epochs, rows = plan.rows(epoch * len(plan), (epoch + 1) * len(plan))
        assert sorted(rows.tolist()) == list(range(sum(sizes)))
        assert set(epochs.tolist()) == {epoch}


@settings(max_examples=50)
@given(SIZES, SEED, WINDOW, st.data())
def test_any_cut_gives_the_same_sequence(
    sizes: list[int], seed: int, window: int, data: Any
) -> None:
    """Steps, ranks and resume points are all ways to cut the positions; none changes the rows."""
    total = data.draw(st.integers(0, 3 * sum(sizes)))
    epochs, rows = make_plan(sizes, seed, window).rows(0, total)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    fresh = make_plan(sizes, seed, window)
    spans = list(zip([0, *cuts], [*cuts, total], strict=True))
    order = data.draw(st.permutations(range(len(spans))))
    pieces = {i: fresh.rows(*spans[i]) for i in order}
    assert np.concatenate([pieces[i][0] for i in range(len(spans))]).tolist() == epochs.tolist()
    assert np.concatenate([pieces[i][1] for i in range(len(spans))]).tolist() == rows.tolist()


@given(SIZES, SEED, WINDOW)
def test_samples_stay_inside_their_window(sizes: list[int], seed: int, window: int) -> None:
    plan = EpochPlan(np.array(sizes, dtype=np.int64), seed, 0, window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for position, row in enumerate(plan.rows(0, len(plan)).tolist()):
        assert shard_of[row] in plan.shards_of(plan.window_at(position))


def test_seeds_and_epochs_differ() -> None:
    sizes = [50] * 4
    orders = [make_plan(sizes, seed).rows(0, 400)[1].tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert orders[0][:200] != orders[0][200:]


def test_no_row_prefers_a_position() -> None:
    sizes = [5] * 4
    plan = make_plan(sizes, window=2)
    firsts = [int(plan.rows(epoch * 20, epoch * 20 + 1)[1][0]) for epoch in range(2000)]
    assert np.bincount(firsts, minlength=20).min() > 55  # 100 expected, standard deviation 9.7


@given(SIZES, st.integers(0, 1000))
def test_state_round_trip(sizes: list[int], position: int) -> None:
    plan = make_plan(sizes, seed=7)
    state = LoaderState.from_dict(plan.state(position).to_dict())
    assert plan.position(state) == position
    assert 0 <= state.consumed < len(plan)


def test_state_of_other_data_is_refused() -> None:
    state = make_plan([4, 4], seed=7).state(3)
    with pytest.raises(ConfigError, match=r"data.filter or data.window"):
        make_plan([4, 4], seed=7, selection="other").position(state)
    with pytest.raises(ConfigError, match=r"data.window"):
        make_plan([4, 4], seed=7, window=1).position(state)
    with pytest.raises(ConfigError, match="seed 7"):
        make_plan([4, 4], seed=8).position(state)


def plain_steps(
    sizes: list[int], seed: int, window: int, *, drop: bool, batch: int, steps: int
) -> list[list[tuple[int, int]]]:
    """The (epoch, row) pairs of each step, from whole epochs laid end to end."""
    stream: list[tuple[int, int]] = []
    epoch = 0
    while len(stream) < batch * steps:
        order = [(epoch, row) for row in plain_epoch(sizes, seed, epoch, window)]
        stream += order[: len(order) // batch * batch] if drop else order
        epoch += 1
    return [stream[step * batch : (step + 1) * batch] for step in range(steps)]


def steps_of(plan: Plan, start: int, steps: int, batch: int, ranks: int) -> list[Any]:
    """The (epoch, row) pairs of each step as the ranks' tasks name them, joined in rank order."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    for rank in range(ranks):
        tasks = Tasks(
            plan, start=start, steps=steps, global_batch=batch, rank=rank, world_size=ranks
        )
        for step, task in enumerate(tasks):
            found[step] += zip(task.epochs, task.rows, strict=True)
    return found


@settings(max_examples=150)
@given(SIZES, SEED, WINDOW, st.booleans(), st.data())
def test_steps_on_any_ranks_resumed_anywhere_equal_the_plain_reference(
    sizes: list[int], seed: int, window: int, drop: bool, data: Any
) -> None:
    """Sizes from one sample in one shard on: fewer shards than ranks, batches of many epochs."""
    batch = 4 * data.draw(st.integers(1, 5))
    ranks = data.draw(st.sampled_from([1, 2, 4]))
    if drop and sum(sizes) < batch:
        with pytest.raises(ConfigError, match=rf"tail=drop leaves nothing.*batch of {batch}"):
            Plan(np.array(sizes), "s", seed, window, tail="drop", batch=batch)
        return
    steps = data.draw(st.integers(1, 12))
    done = data.draw(st.integers(0, steps))
    expected = plain_steps(sizes, seed, window, drop=drop, batch=batch, steps=steps)

    def plan() -> Plan:
        tail: Tail = "drop" if drop else "carry"
        return Plan(np.array(sizes), "s", seed, window, tail=tail, batch=batch)

    before = steps_of(plan(), 0, done, batch, ranks)
    state = LoaderState.from_dict(plan().state(done * batch).to_dict())
    resumed = plan()
    after = steps_of(resumed, resumed.position(state), steps - done, batch, 4 // ranks)
    assert before + after == expected


@given(SIZES, SEED, WINDOW, st.integers(1, 30))
def test_dropped_tails_are_short_and_nothing_comes_twice(
    sizes: list[int], seed: int, window: int, batch: int
) -> None:
    total = sum(sizes)
    if batch > total:
        return
    plan = Plan(np.array(sizes), "s", seed, window, tail="drop", batch=batch)
    assert len(plan) == samples_per_epoch(total, "drop", batch) == total - total % batch
    for epoch in range(3):
        epochs, rows = plan.rows(epoch * len(plan), (epoch + 1) * len(plan))
        assert set(epochs.tolist()) == {epoch}
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(range(total))


def test_each_epoch_drops_others() -> None:
    plan = Plan(np.array([5, 6]), "s", 0, 1, tail="drop", batch=4)
    dropped = [set(range(11)) - set(plan.rows(8 * e, 8 * e + 8)[1].tolist()) for e in range(40)]
    assert all(len(rows) == 3 for rows in dropped)
    assert set.union(*dropped) == set(range(11))


@given(SIZES, st.integers(1, 10), st.integers(1, 10), st.integers(0, 10))
def test_another_batch_goes_on_where_it_can(
    sizes: list[int], batch: int, other: int, done: int
) -> None:
    """With `drop` only between two batches, and then with the next sample of that epoch's order."""
    total = sum(sizes)
    if max(batch, other) > total:
        return
    first = Plan(np.array(sizes), "s", 1, 2, tail="drop", batch=batch)
    second = Plan(np.array(sizes), "s", 1, 2, tail="drop", batch=other)
    state = first.state(done * batch)
    if state.consumed % other:
        with pytest.raises(ConfigError, match=rf"divides {state.consumed}, or data.tail=carry"):
            second.position(state)
    else:
        position = second.position(state)
        order = plain_epoch(sizes, 1, state.epoch, 2)
        if state.consumed + other <= total:
            rows = second.rows(position, position + other)[1].tolist()
            assert rows == order[state.consumed : state.consumed + other]
        else:
            assert position == (state.epoch + 1) * len(second)
    carried = Plan(np.array(sizes), "s", 1, 2)
    following = carried.rows(carried.position(state), carried.position(state) + 1)
    assert following[1][0] == plain_epoch(sizes, 1, state.epoch, 2)[state.consumed]


@given(SIZES, WINDOW, st.booleans(), st.integers(1, 20), st.integers(0, 60))
def test_shards_ahead_hold_what_is_read_next(
    sizes: list[int], window: int, drop: bool, batch: int, step: int
) -> None:
    if drop and batch > sum(sizes):
        return
    plan = Plan(np.array(sizes), "s", 0, window, tail="drop" if drop else "carry", batch=batch)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    start = step * batch
    ahead = plan.shards_ahead(start, start + batch)
    known = {(epoch, shard) for epoch, _, shards in ahead for shard in shards}
    epochs, rows = plan.rows(start, start + batch)
    for epoch, row in zip(epochs.tolist(), rows.tolist(), strict=True):
        assert (epoch, shard_of[row]) in known
    windows = [(epoch, number) for epoch, number, _ in ahead]
    assert windows == sorted(set(windows))
    used = {(int(e), plan.epoch(int(e)).window_at(p % len(plan)))
            for e, p in zip(epochs, range(start, start + batch), strict=True)}  # fmt: skip
    assert set(windows[:-1]) == used  # and exactly one more


def test_no_sample_at_all() -> None:
    with pytest.raises(ConfigError, match=r"data.shards: there is no sample"):
        Plan(np.zeros(0, dtype=np.int64), "s", 0, 1)


def test_what_is_held_does_not_grow() -> None:
    plan = Plan(np.full(50, 40), "s", 0, 4)
    for start in range(0, 3 * 2000, 16):
        plan.rows(start, start + 16)
        plan.shards_ahead(start, start + 16)
    assert len(plan._epochs) <= 2
    assert all(len(plan.epoch(epoch)._held) <= 2 for epoch in list(plan._epochs))
