"""Intervals by formula: their laws, and how often they cover the truth."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.ablate.intervals import (
    fieller,
    has_zero,
    mean,
    percentile,
    slope_coefficients,
    student,
    t95,
)

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


@given(values, st.floats(-100, 100), st.floats(0.1, 10))
def test_interval_moves_and_scales_with_the_values(
    sample: list[float], shift: float, scale: float
) -> None:
    one, other = student(sample), student([scale * value + shift for value in sample])
    assert one is not None and other is not None
    assert other == pytest.approx([scale * end + shift for end in one], abs=1e-5)
    assert sum(one) / 2 == pytest.approx(mean(sample), abs=1e-9)


def test_interval_covers_the_truth_95_times_in_100() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(4000):
        low, high = student([draw.gauss(3, 2) for _ in range(3)]) or (0, 0)
        covered += low <= 3 <= high
    assert 0.94 < covered / 4000 < 0.96


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert student([2.0]) is None
    assert fieller([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.floats(-2, 2), min_size=3, max_size=9))
def test_slope_of_a_line_is_its_slope(a: float, b: float, x: list[float]) -> None:
    if max(x) - min(x) < 1e-3:
        return
    fitted = sum(c * (a * at + b) for c, at in zip(slope_coefficients(x), x, strict=True))
    assert fitted == pytest.approx(a, abs=1e-6)


@given(st.integers(0, 10**6))
def test_slope_is_numpys_least_squares(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(2, 6))
    fitted = float(np.dot(slope_coefficients(x.tolist()), y))
    assert fitted == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6, abs=1e-9)


def test_slope_needs_two_places() -> None:
    with pytest.raises(ValueError, match="two different x"):
        slope_coefficients([1.0, 1.0])


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(0.1, 10))
def test_fieller_scales_with_both_sides(seed: int, up: float, down: float) -> None:
    draw = np.random.default_rng(seed)
    above, below = draw.normal(1, 0.2, 4), draw.normal(3, 0.2, 4)
    one = fieller(above.tolist(), below.tolist())
    other = fieller((up * above).tolist(), (down * below).tolist())
    assert one is not None and other is not None
    assert other == pytest.approx([up / down * end for end in one], rel=1e-6)
    assert one[0] <= above.mean() / below.mean() <= one[1]


@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_fieller_holds_the_ratios_that_student_cannot_refuse(seed: int, theta: float) -> None:
    draw = np.random.default_rng(seed)
    above, below = draw.normal(1, 1, 4), draw.normal(2, draw.choice([0.5, 2]), 4)
    found = fieller(above.tolist(), below.tolist())
    assert (found is None) == has_zero(student(below.tolist()))
    if found is not None:
        inside = has_zero(student((above - theta * below).tolist()))
        near = min(abs(theta - end) for end in found) < 1e-6
        assert near or inside == (found[0] <= theta <= found[1])


def test_percentiles_leave_undefined_replicates_out() -> None:
    drawn = np.append(np.linspace(0, 1, 1001), [math.nan] * 5)
    assert percentile(drawn) == pytest.approx((0.025, 0.975))
    assert percentile(np.full(3, math.nan)) is None


def test_quantiles_fall_to_the_normal() -> None:
    quantiles = [t95(n) for n in range(1, 40)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t95(10**6) == pytest.approx(1.95996, abs=1e-5)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (30, 2.0423), (31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)],
)
def test_quantiles_are_those_of_printed_tables(degrees: int, quantile: float) -> None:
    assert t95(degrees) == pytest.approx(quantile, abs=5e-4)
