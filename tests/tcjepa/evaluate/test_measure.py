"""Standard errors: what they say and what they don't."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.evaluate.measure import Measure, binomial_error


def test_seed_error_is_the_standard_error_of_the_mean():
    measure = Measure.over_seeds([0.5, 0.6, 0.7], 0.01)
    assert measure.value == pytest.approx(0.6)
    assert measure.seed_error == pytest.approx(0.1 / math.sqrt(3))
    assert measure.error == measure.seed_error


def test_the_larger_error_counts_and_one_seed_has_none_of_its_own():
    measure = Measure.accuracy([0.8], 100)
    assert measure.seed_error is None
    assert measure.error == measure.sampling_error == pytest.approx(0.04, abs=0.002)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_binomial_error_is_positive_and_bounded(count, share):
    assert 0 < binomial_error(share, count) <= 0.5 / math.sqrt(count) + 1e-12


def test_refusals():
    with pytest.raises(ValueError, match="no seed"):
        Measure.over_seeds([], 0.1)
    with pytest.raises(ValueError, match="no standard error"):
        binomial_error(0.5, 0)
