"""The pointing game and its specificity: laws that hold whatever is named how often."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.evaluate.mentions import Mention
from tcjepa.evaluate.pointing import between_objects, pointed

PATCHES, READINGS = 12, 2

#: How often each named object of each image is named: the first few of four objects.
counts = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=4), min_size=2, max_size=4)
seeds = st.integers(0, 2**32 - 1)


def named(counted: list[list[int]], rng: np.random.Generator) -> list[Mention]:
    """Return mentions of objects that share no patch, in shuffled order of words."""
    found = []
    for image, own in enumerate(counted):
        owner = rng.permutation([*range(len(own)), *rng.integers(-1, len(own), PATCHES - len(own))])
        words = np.repeat(np.arange(len(own)), own)
        for word in rng.permutation(words):
            found.append(Mention(image, 0, (0,), str(word), owner == word))
    return found


def images_of(mentions: list[Mention]) -> np.ndarray:
    return np.array([mention.image for mention in mentions])


@given(counts, seeds, st.integers(1, 3))
def test_maps_that_ignore_the_word_have_a_specificity_of_exactly_zero(counted, seed, levels):
    rng = np.random.default_rng(seed)
    mentions = named(counted, rng)
    # Few levels, so that a map is often largest on several patches.
    blind = rng.integers(0, levels, (len(counted), READINGS, PATCHES)).astype(np.float32)
    others, specificity = between_objects(blind[images_of(mentions)], mentions)
    beside = np.array([len(own) > 1 for own in counted])
    if beside.sum() < 2:
        beside[:] = False
    assert (specificity[beside] == 0).all()
    assert np.isnan(specificity[~beside]).all() and np.isnan(others[~beside]).all()


@given(counts.filter(lambda c: sum(len(own) > 1 for own in c) > 1), seeds)
def test_naming_an_object_again_changes_nothing(counted, seed):
    rng = np.random.default_rng(seed)
    mentions = named([[1] * len(own) for own in counted], rng)
    maps = rng.normal(size=(len(mentions), READINGS, PATCHES)).astype(np.float32)
    times = [counted[m.image][int(m.category)] for m in mentions]
    again = [m for m, n in zip(mentions, times, strict=True) for _ in range(n)]
    once = between_objects(maps, mentions)
    often = between_objects(np.repeat(maps, times, axis=0), again)
    for a, b in zip(once, often, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@given(counts.filter(lambda c: sum(len(own) > 1 for own in c) > 1), seeds)
def test_maps_of_the_words_own_objects_have_one(counted, seed):
    mentions = named(counted, np.random.default_rng(seed))
    truth = np.stack([mention.patches for mention in mentions])
    maps = np.repeat(truth[:, None].astype(np.float32), READINGS, axis=1)
    others, specificity = between_objects(maps, mentions)
    beside = np.isfinite(others)
    assert (others[beside] == 0).all() and (specificity[beside] == 1).all()


def test_equally_large_patches_share_a_hit():
    maps = np.array([[[2, 2, 1, 2]], [[0, 0, 0, 0]]], np.float32)
    truth = np.array([[True, True, True, False], [False, True, False, False]])
    assert pointed(maps, truth).tolist() == [[2 / 3], [1 / 4]]
