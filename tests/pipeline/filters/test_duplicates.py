import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters import duplicates
from pipeline.filters.duplicates import (
    _masks,
    exact_leaders,
    near_duplicates,
    preference_order,
)
from pipeline.filters.keys import uid_texts, uid_words
from tests.peak_memory import peak_growth


def reference(
    hashes: list[int], radius: int, colours: np.ndarray, tolerance: int | None, order: list[int]
) -> list[int]:
    """Star clusters as the docstring says it, comparing every pair."""
    labels = [-1] * len(hashes)
    for place, centre in enumerate(order):
        if labels[centre] >= 0:
            continue
        labels[centre] = centre
        for row in order[place + 1 :]:
            near = (hashes[row] ^ hashes[centre]).bit_count() <= radius
            if tolerance is not None:
                levels = np.abs(colours[row].astype(int) - colours[centre].astype(int))
                near = near and bool((levels <= tolerance).all())
            if near and labels[row] < 0:
                labels[row] = centre
    return labels


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[int], int, np.ndarray, int | None, list[int]]:
    """Hashes in chains and clusters around few seeds, so that stars compete for members."""
    seeds = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    hashes: list[int] = []
    for _ in range(draw(st.integers(0, 24))):
        value = draw(st.sampled_from(hashes + seeds))
        for bit in draw(st.lists(st.integers(0, 63), max_size=4)):
            value ^= 1 << bit
        hashes.append(value)
    levels = draw(st.lists(st.integers(0, 6), min_size=2 * len(hashes), max_size=2 * len(hashes)))
    colours = np.array(levels, np.uint8).reshape(len(hashes), 2)
    tolerance = draw(st.none() | st.integers(0, 4))
    order = draw(st.permutations(range(len(hashes))))
    return hashes, draw(st.integers(0, 7)), colours, tolerance, order


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_equals_the_plain_reference(
    world: tuple[list[int], int, np.ndarray, int | None, list[int]],
) -> None:
    hashes, radius, colours, tolerance, order = world
    found = near_duplicates(
        np.array(hashes, np.uint64),
        radius,
        colours=colours,
        tolerance=tolerance,
        order=np.array(order, np.int64),
    )
    assert found.tolist() == reference(hashes, radius, colours, tolerance, order)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(20, 90),
    bits=st.integers(3, 16),
    density=st.sampled_from([0.05, 0.2, 0.5]),
    radius=st.integers(0, 4),
    tolerance=st.sampled_from([None, 0, 2]),
    room=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_clusters_settled_over_many_rounds_equal_the_plain_reference(
    *,
    seed: int,
    count: int,
    bits: int,
    density: float,
    radius: int,
    tolerance: int | None,
    room: float,
) -> None:
    generator = np.random.default_rng(seed)
    # Hashes of few bits, at places all over the 64: big clusters, chains, many masks in common.
    flips = (generator.random((count, bits)) < density).astype(np.uint64)
    places = generator.choice(64, bits, replace=False).astype(np.uint64)
    hashes = (flips << places).sum(axis=1, dtype=np.uint64)
    colours = generator.integers(0, 5, (count, 2)).astype(np.uint8)
    order = generator.permutation(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_CLOSE_PER_ROW", room)
        found = near_duplicates(hashes, radius, colours=colours, tolerance=tolerance, order=order)
    expected = reference(hashes.tolist(), radius, colours, tolerance, order.tolist())
    assert found.tolist() == expected


def near_copies(count: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Re-encodings of one image: at most `flips` bits of the hash differ from it, colours by 4."""
    generator = np.random.default_rng(0)
    hashes = np.full(count, generator.integers(0, 2**64, dtype=np.uint64))
    for flip in range(flips):
        bit = np.uint64(1) << generator.integers(0, 64, count, dtype=np.uint64)
        hashes ^= np.where(generator.integers(0, flips + 1, count) > flip, bit, np.uint64(0))
    return hashes, generator.integers(96, 105, (count, 48)).astype(np.uint8)


def copies_of(hashes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return near_duplicates(hashes, 4, colours=colours, tolerance=8)


# With 2 flips all are near one another; with 5 many are not, and become centres of their own.
@pytest.mark.parametrize(("flips", "least"), [(2, 1), (5, 100)])
def test_twenty_thousand_near_copies_take_little_memory(flips: int, least: int) -> None:
    hashes, colours = near_copies(20_000, flips)
    assert len(np.unique(colours, axis=0)) == 20_000
    labels, growth = peak_growth(copies_of, hashes, colours, warm_up=near_copies(200, flips))
    assert growth < 64e6  # its pairs would take 3.2 GB
    kept = np.flatnonzero(labels == np.arange(20_000))
    assert least <= len(kept) <= 4 * least
    # Each row has the first row that is kept and near; that makes the labels the only ones.
    first = np.full(20_000, -1)
    for row in kept[::-1]:
        later = np.flatnonzero(np.bitwise_count(hashes ^ hashes[row]) <= 4)
        later = later[later >= row]
        first[later] = row
    assert np.array_equal(labels, first)


def test_a_large_cluster_hides_behind_rows_that_are_not_near() -> None:
    # In each run of equal keys, 500 rows of other colours come first: same hash, no copies.
    hashes, colours = near_copies(3000, 1)
    others = np.random.default_rng(1).integers(0, 256, (500, 48)).astype(np.uint8)
    hashes = np.concatenate([np.full(500, hashes[0]), hashes])
    labels = copies_of(hashes, np.concatenate([others, colours]))
    assert labels.tolist() == [*range(500), *[500] * 3000]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 63), max_size=16, unique=True),
    st.sampled_from([2, 1000, 10**6, 10**8]),
)
def test_hashes_within_the_radius_agree_under_a_mask(
    value: int, bits: list[int], count: int
) -> None:
    other = value
    for bit in bits:
        other ^= 1 << bit
    assert any(value & int(mask) == other & int(mask) for mask in _masks(max(len(bits), 1), count))


def test_a_chain_is_not_one_cluster() -> None:
    chain = np.array([0, 0b111, 0b111111, 0b111111111], np.uint64)
    assert near_duplicates(chain, 3).tolist() == [0, 0, 2, 2]


def test_same_layout_in_another_colour_is_no_copy() -> None:
    hashes = np.array([5, 5, 5], np.uint64)
    colours = np.full((3, 48), 100, np.uint8)
    colours[1, 3] += 40
    colours[2] += 2
    labels = near_duplicates(hashes, 4, colours=colours, tolerance=8)
    assert labels.tolist() == [0, 1, 0]
    assert near_duplicates(hashes, 4).tolist() == [0, 0, 0]


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 80_000, dtype=np.uint64)
    source = rng.integers(0, len(centres), 20_000)
    flips = np.uint64(1) << rng.integers(0, 64, (2, 20_000), dtype=np.uint64)
    hashes = np.concatenate([centres, centres[source] ^ flips[0] ^ flips[1]])
    start = time.process_time()
    labels = near_duplicates(hashes, 4)
    assert time.process_time() - start < 10
    assert (labels[80_000:] == source).mean() > 0.999
    assert (labels[:80_000] == np.arange(80_000)).mean() > 0.999


UIDS = [digits * 16 for digits in ("00", "0f", "a0", "ff")]
ROWS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 3), st.sampled_from(UIDS)), min_size=1, max_size=9
)


@given(ROWS)
def test_leaders_of_copies_are_the_preferred_rows(rows: list[tuple[bool, int, str]]) -> None:
    trained, pixels, uids = zip(*rows, strict=True)
    words = uid_words(pa.array(uids))
    order = preference_order(np.array(trained), np.array(pixels), words).tolist()
    # Held-out first, then more pixels, then the smaller uid; rows equal in all stay in order.
    plain = sorted(range(len(rows)), key=lambda i: (trained[i], -pixels[i], uids[i]))
    assert order == plain
    expected = [next(j for j in order if uids[j] == uid) for uid in uids]
    assert exact_leaders(words, np.array(order)).tolist() == expected


@given(st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=5))
def test_uids_survive_as_numbers_and_sort_as_texts(uids: list[str]) -> None:
    words = uid_words(pa.chunked_array([uids[:2], uids[2:]], pa.string()))
    assert uid_texts(words).to_pylist() == uids
    order = np.lexsort((words[:, 1], words[:, 0])).tolist()
    assert [uids[i] for i in order] == sorted(uids)


@pytest.mark.parametrize("uid", ["0" * 31 + "G", "0" * 31 + "A", None])
def test_what_is_no_uid_is_refused(uid: str | None) -> None:
    with pytest.raises(ValueError, match="32 lower-case hex digits"):
        uid_words(pa.array(["0" * 32, uid]))


@pytest.mark.parametrize("radius", [0, 4])
def test_no_hashes_no_labels(radius: int) -> None:
    assert near_duplicates(np.zeros(0, np.uint64), radius).tolist() == []
