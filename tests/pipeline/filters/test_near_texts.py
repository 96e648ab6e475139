import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.near_texts import SIGNATURE_BYTES, near_captions, signatures, similarity

LONG = "the old red boat lies on a quiet beach below white cliffs in the evening sun of spring"


def jaccard(first: str, second: str) -> float:
    """Return the exact similarity that signatures estimate."""
    sets = []
    for text in (first, second):
        words = re.findall(r"\w+", text.lower())
        sets.append(set(itertools.pairwise(words)) or {tuple(words)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(changes: int, seed: int) -> str:
    generator = np.random.default_rng(seed)
    words = LONG.split()
    for place in generator.permutation(len(words))[:changes]:
        words[place] = f"word{generator.integers(1000)}"
    return " ".join(words)


def test_similarity_estimates_jaccard() -> None:
    texts = [edited(changes, seed) for changes in (0, 1, 2, 4, 8) for seed in range(20)]
    made = signatures([LONG, *texts])
    exact = np.array([jaccard(LONG, text) for text in texts])
    errors = similarity(made[1:], made[0]) - exact
    assert np.abs(errors).max() < 4 * 0.063  # four standard errors
    assert abs(errors.mean()) < 0.03
    assert exact.min() < 0.2
    assert exact.max() > 0.8


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("A red dog.", "a red  DOG", True),
        ("word", "WORD!", True),
        ("", "...", True),
        ("a star left of a ring", "a ring left of a star", False),
        ("word", "words", False),
        ("two dogs", "2 dogs", False),
    ],
)
def test_case_and_punctuation_do_not_matter_and_order_does(
    first: str, second: str, same: bool
) -> None:
    one, other = signatures([first, second])
    assert bool((one == other).all()) == same
    assert one.shape == (SIGNATURE_BYTES,)


TEXTS = st.sampled_from([LONG, edited(1, 0), edited(1, 1), edited(9, 2), "a dog", "A dog!", ""])


@given(st.lists(st.tuples(TEXTS, st.integers(0, 2)), max_size=12), st.sampled_from([0.7, 1.0]))
def test_labels_are_near_earlier_captions_of_the_group(
    rows: list[tuple[str, int]], threshold: float
) -> None:
    texts = [text for text, _ in rows]
    groups = np.array([group for _, group in rows], dtype=np.int64)
    made = signatures(texts)
    label = near_captions(made, threshold, groups)
    near = similarity(made[:, None], made[None]) >= threshold
    near &= groups[:, None] == groups[None]
    for place, found in enumerate(label.tolist()):
        assert found <= place
        assert label[found] == found  # something of every cluster stays
        if found != place:  # it is near to one of its cluster that came before
            assert near[place, :place][label[:place] == found].any()
        equal = (made[:place] == made[place]).all(axis=1) & near[place, :place]
        if equal.any():  # equal captions always find one another
            assert found != place
    # Texts this alike share a band all but surely; none of these is left out.
    for place in range(len(rows)):
        if label[place] == place:
            kept = np.flatnonzero(label[:place] == np.arange(place))
            assert not near[place, kept].any()


def test_a_large_cluster_takes_near_linear_time_and_is_one() -> None:
    made = signatures([f"buy the {number} at our shop with free delivery" for number in range(3)])
    many = np.repeat(made, [30_000, 30_000, 1], axis=0)
    label = near_captions(many, 0.99)
    assert np.unique(label).tolist() == [0, 30_000, 60_000]
    assert near_captions(many[:0], 0.99).tolist() == []
