"""Sums per test image: they give the measure, and come back from a file as they went in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tcjepa.evaluate.tally import Tally, from_bytes, images_in, keys_of, ratios, to_bytes

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    images = draw(st.lists(names, unique=True, max_size=6))
    groups = draw(st.integers(1, 3))
    whole = st.integers(0, 70_000).map(float)
    broken = st.floats(0, 1e6, width=32)
    elements = draw(st.sampled_from([whole, broken]))
    return Tally(
        tuple(images), draw(arrays.arrays(np.float32, (len(images), groups, 2), elements=elements))
    )


def by_loops(tally: Tally) -> float:
    """The measure, spelt out."""
    found = []
    for group in range(tally.sums.shape[1]):
        above = math.fsum(float(image[group][0]) for image in tally.sums)
        below = math.fsum(float(image[group][1]) for image in tally.sums)
        if below > 0:
            found.append(above / below)
    return math.fsum(found) / len(found) if found else math.nan


@given(tallies())
def test_the_measure_is_the_mean_of_ratios_of_sums(tally: Tally) -> None:
    assert tally.value == pytest.approx(by_loops(tally), rel=1e-6, nan_ok=True)


@given(st.dictionaries(names, tallies(), max_size=4))
def test_a_file_gives_back_what_went_in(named: dict[str, Tally]) -> None:
    back = from_bytes(to_bytes(named))
    assert list(back) == list(named)
    for name, tally in named.items():
        assert back[name].images == tally.images
        assert back[name].sums.dtype == np.float32
        assert np.array_equal(back[name].sums, tally.sums)
    assert set(images_in(to_bytes(named))) == {i for t in named.values() for i in t.images}


def test_accuracy_and_iou() -> None:
    assert Tally.of_values(["a", "b", "c"], [1, 0, 0.5]).value == pytest.approx(0.5)
    inter = [[4, 0, 0], [2, 1, 0]]
    union = [[4, 0, 0], [8, 2, 0]]
    assert Tally.of_ratios(["a", "b"], inter, union).value == pytest.approx((6 / 12 + 1 / 2) / 2)
    assert math.isnan(Tally.of_ratios(["a"], [[0]], [[0]]).value)


def test_ratios_of_many_totals_at_once() -> None:
    totals = np.random.default_rng(0).integers(0, 3, (50, 4, 2)).astype(float)
    totals[..., 0] = np.minimum(totals[..., 0], totals[..., 1])
    one_by_one = [float(ratios(total)) for total in totals]
    assert np.array_equal(ratios(totals), one_by_one, equal_nan=True)


def test_keys_are_uids_or_numbers() -> None:
    assert keys_of([{"uid": "x"}, {"uid": "y"}]) == ("x", "y")
    assert keys_of([{"uid": "x"}, {}]) == ("0", "1")


def test_pixels_take_two_bytes_at_most() -> None:
    images = [f"{i:032x}" for i in range(2000)]
    pixels = np.random.default_rng(0).integers(0, 128 * 128, (2000, 9, 2))
    tally = Tally(tuple(images), pixels.astype(np.float32))
    assert len(to_bytes({"a": tally, "b": tally})) < 2 * 2000 * 9 * 2 * 2 + 33 * 2000


@pytest.mark.parametrize(
    ("images", "sums", "problem"),
    [
        (("a",), np.ones((2, 1, 2)), r"\(1, G, 2\)"),
        (("a", "a"), np.ones((2, 1, 2)), "twice"),
        (("a",), np.full((1, 1, 2), np.nan), "finite"),
        (("a",), -np.ones((1, 1, 2)), "not below 0"),
    ],
)
def test_refusals(images: tuple[str, ...], sums: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Tally(images, sums.astype(np.float32))


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="not a file of tallies"):
        from_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ValueError, match="not a file of tallies"):
        images_in(b"")
    with pytest.raises(ValueError, match="not a file of tallies"):
        from_bytes(to_bytes({"a": Tally.of_values(["x"], [1])})[:-30])
