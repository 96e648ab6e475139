from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings import ConfigError
from tcjepa import keyed
from tcjepa.data.plan import EpochPlan, LoaderState, Plan

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
