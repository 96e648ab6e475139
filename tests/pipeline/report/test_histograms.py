"""Histograms against numpy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.histograms import Histogram, bins

_NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def filled(values: np.ndarray, unit: bool = False) -> Histogram:
    histogram = Histogram(unit)
    histogram.add(np.asarray(values, dtype=np.float64))
    return histogram


@given(st.lists(_NUMBERS, min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_right_to_the_bins_precision(values: list[float], share: float) -> None:
    found = filled(np.array(values)).quantile(share)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert found == pytest.approx(exact, rel=1 / 128, abs=1e-30)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_shares_are_kept_to_a_thousandth(values: list[int]) -> None:
    found, counts = filled(np.array(values) / 1000, unit=True).distinct()
    exact, times = np.unique(values, return_counts=True)
    assert np.array_equal(np.round(found * 1000), exact)
    assert np.array_equal(counts, times)


@given(st.lists(_NUMBERS, max_size=300), st.integers(1, 5))
def test_adding_in_pieces_changes_nothing(values: list[float], pieces: int) -> None:
    whole, parts = filled(np.array(values)), Histogram()
    for piece in np.array_split(np.array(values), pieces):
        parts.add(piece)
    assert np.array_equal(whole.counts, parts.counts)


@given(st.lists(_NUMBERS, min_size=1, max_size=200), st.lists(_NUMBERS, max_size=2))
def test_bins_hold_every_value_in_order(values: list[float], limits: list[float]) -> None:
    drawn = bins(filled(np.array(values)), include=tuple(limits))
    assert drawn is not None
    assert drawn.counts.sum() == len(values)
    assert np.all(np.diff(drawn.edges) > 0)
    assert len(drawn.counts) <= 42


def test_whole_numbers_get_bins_of_whole_numbers() -> None:
    drawn = bins(filled(np.array([1, 2, 2, 3, 3, 3])))
    assert drawn is not None
    assert drawn.edges[:4].tolist() == [1, 2, 3, 4]
    assert drawn.counts[:3].tolist() == [1, 2, 3]


def test_wide_ranges_are_drawn_on_a_logarithmic_axis() -> None:
    wide = bins(filled(np.geomspace(1, 1e6, 500)))
    assert wide is not None
    assert wide.logarithmic
    narrow = bins(filled(np.linspace(100, 200, 500)))
    assert narrow is not None
    assert not narrow.logarithmic


def test_a_far_threshold_does_not_squeeze_the_values() -> None:
    values = np.linspace(100, 200, 500)
    near, far = bins(filled(values), include=(64.0,)), bins(filled(values), include=(9e7,))
    assert near is not None
    assert near.edges[0] <= 64
    assert far is not None
    assert far.edges[-1] < 300


def test_nulls_are_counted_apart_and_an_empty_histogram_draws_nothing() -> None:
    histogram = filled(np.array([np.nan, 1.0, np.inf]))
    assert (histogram.total, histogram.missing) == (1, 2)
    assert bins(Histogram()) is None
    assert np.isnan(Histogram().quantile(0.5))


def test_memory_does_not_grow_with_values() -> None:
    small, large = filled(np.zeros(1)), filled(np.random.default_rng(0).normal(size=100_000))
    assert small.counts.nbytes == large.counts.nbytes
