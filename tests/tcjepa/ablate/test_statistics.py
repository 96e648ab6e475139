from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.ablate.statistics import mean, slope, t95

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_interval_moves_and_scales_with_the_values(
    sample: list[float], shift: float, scale: float
) -> None:
    one, other = mean(sample), mean([scale * value + shift for value in sample])
    assert other.value == pytest.approx(scale * one.value + shift, abs=1e-6)
    assert other.half_width == pytest.approx(scale * (one.half_width or 0), abs=1e-5)


def test_interval_covers_the_truth_95_times_in_100() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(4000):
        estimate = mean([draw.gauss(3, 2) for _ in range(3)])
        low, high = estimate.interval or (0, 0)
        covered += low <= 3 <= high
    assert 0.94 < covered / 4000 < 0.96


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert mean([2.0]).half_width is None
    with pytest.raises(ValueError, match="no values"):
        mean([])


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_slope_of_a_line_is_its_slope(a: float, b: float) -> None:
    x = [0.0, 0.4, 1.0, 1.0]
    fitted = slope(x, [a * value + b for value in x])
    assert fitted is not None
    assert fitted.value == pytest.approx(a, abs=1e-9)
    assert fitted.half_width == pytest.approx(0, abs=1e-6)


def test_slope_needs_three_points_at_two_places() -> None:
    assert slope([0.0, 1.0], [0.0, 1.0]) is None
    assert slope([1.0, 1.0, 1.0], [0.0, 1.0, 2.0]) is None


def test_slope_interval_covers_the_truth() -> None:
    draw = random.Random(1)
    x = [0.0, 0.0, 0.4, 0.4, 1.0, 1.0]
    covered = 0
    for _ in range(3000):
        fitted = slope(x, [2 * value + draw.gauss(0, 1) for value in x])
        assert fitted is not None and fitted.interval is not None
        covered += fitted.interval[0] <= 2 <= fitted.interval[1]
    assert 0.935 < covered / 3000 < 0.965


def test_quantiles_fall_to_the_normal() -> None:
    quantiles = [t95(n) for n in range(1, 40)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert math.isclose(t95(10**6), 1.96)
