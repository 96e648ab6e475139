from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa import keyed

GOLDEN_KEY = 41373779185983821174116194872053264045
GOLDEN_BITS = [13686314096870337161, 17057750910264596204]
GOLDEN_PERMUTATION = [5, 4, 3, 7, 6, 0, 2, 1]
GOLDEN_DRAWS = [0.7976098163926003, 0.5727993524534981]
GOLDEN_MIX = [13168350753275463132, 15093541023163888492]


def test_streams_never_change() -> None:
    # A checkpoint of last year must find the same order: these values are part of the contract.
    some_key = keyed.key("window", 1, 2, 3)
    assert some_key == GOLDEN_KEY
    assert keyed.bits(some_key, 2).tolist() == GOLDEN_BITS
    assert keyed.permutation(some_key, 8).tolist() == GOLDEN_PERMUTATION
    assert keyed.mix(np.array([0, 1], dtype=np.uint64), 5).tolist() == GOLDEN_MIX
    assert keyed.draws(some_key, 2) == GOLDEN_DRAWS


@given(st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 9)), max_size=5))
def test_bits_are_a_new_generators(calls: list[tuple[int, int]]) -> None:
    for some_key, count in calls:
        fresh = np.random.Philox(key=some_key).random_raw(count)
        assert keyed.bits(some_key, count).tolist() == fresh.tolist()


def test_key_tells_parts_and_types_apart() -> None:
    keys = [keyed.key(1), keyed.key("1"), keyed.key(1, 1), keyed.key(11), keyed.key("1", "1")]
    assert len(set(keys)) == len(keys)


@given(st.integers(0, 2**127), st.integers(0, 200))
def test_permutation_holds_every_number_once(some_key: int, count: int) -> None:
    assert sorted(keyed.permutation(some_key, count).tolist()) == list(range(count))


@given(st.integers(0, 2**128 - 1), st.integers(0, 40), st.integers(0, 40))
def test_more_draws_extend_fewer(some_key: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    draws = keyed.draws(some_key, more)
    assert len(draws) == more == len(set(draws))
    assert keyed.draws(some_key, few) == draws[:few]


@pytest.mark.parametrize("draw", [keyed.uniform, keyed.draws])
def test_numbers_fill_the_unit_interval(draw: Any) -> None:
    draws = np.array(draw(keyed.key("x"), 20_000))
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 200  # 4.7 standard deviations


def test_mix_agrees_with_plain_integers() -> None:
    def plain(value: int, salt: int) -> int:
        mask = 2**64 - 1
        word = (value + salt) & mask
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ word >> 27) * 0x94D049BB133111EB & mask
        return word ^ word >> 31

    values = keyed.bits(keyed.key("values"), 50)
    salt = keyed.key("salt")
    expected = [plain(int(value), salt & (2**64 - 1)) for value in values]
    assert keyed.mix(values, salt).tolist() == expected
