"""The standard error of a measure over test images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tcjepa.evaluate.captioned import measured
from tcjepa.evaluate.tally import Tally


def test_of_equal_denominators_it_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=30)
    found = measured(Tally.of_values([str(number) for number in range(30)], values))
    assert found.value == pytest.approx(values.mean(), abs=1e-6)
    assert found.sampling_error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=1e-5)


def test_the_error_of_a_ratio_is_what_drawing_images_again_gives() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 6, 400)
    hits = rng.binomial(words, rng.beta(2, 3, 400))
    tally = Tally.of_ratios([str(n) for n in range(400)], hits[:, None], words[:, None])
    drawn = rng.integers(0, 400, (4000, 400))
    again = hits[drawn].sum(1) / words[drawn].sum(1)
    assert measured(tally).value == pytest.approx(hits.sum() / words.sum())
    assert measured(tally).error == pytest.approx(again.std(), rel=0.1)


def test_images_that_do_not_count_change_nothing() -> None:
    some = Tally.of_ratios("ab", [[1], [3]], [[2], [4]])
    more = Tally.of_ratios("abc", [[1], [3], [0]], [[2], [4], [0]])
    assert measured(some) == measured(more)
    assert measured(some).sampling_error > 0


@pytest.mark.parametrize("counting", [0, 1])
def test_one_image_has_no_standard_error_and_so_none_of_zero(counting: int) -> None:
    words = [[3.0 * (number < counting)] for number in range(2)]
    with pytest.raises(ValueError, match=f"needs two that count, got {counting}"):
        measured(Tally.of_ratios("ab", [[0], [0]], words))


def test_several_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="one group"):
        measured(Tally.of_ratios("ab", np.ones((2, 2)), np.ones((2, 2))))
