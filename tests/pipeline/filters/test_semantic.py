import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.semantic import semantic_duplicates


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def plain(embeddings: np.ndarray, threshold: float) -> list[int]:
    """Star clusters in order of preference, comparing every pair."""
    points = embeddings.astype(np.float32)
    labels = [-1] * len(points)
    for centre in range(len(points)):
        if labels[centre] >= 0:
            continue
        labels[centre] = centre
        for row in range(centre + 1, len(points)):
            if labels[row] < 0 and points[row] @ points[centre] >= threshold:
                labels[row] = centre
    return labels


@given(st.integers(0, 1000), st.integers(0, 30), st.sampled_from([0.8, 0.9]))
def test_one_cluster_is_the_plain_reference(seed: int, count: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    embeddings = unit(generator.normal(size=(count, 4)))
    assert semantic_duplicates(embeddings, threshold).tolist() == plain(embeddings, threshold)


def test_many_clusters_find_the_copies_and_only_those() -> None:
    generator = np.random.default_rng(0)
    originals = generator.normal(size=(3000, 32))
    copies = originals[:600] + 0.05 * generator.normal(size=(600, 32))
    embeddings = unit(np.concatenate([originals, copies]))
    labels = semantic_duplicates(embeddings, 0.95, cluster_size=200)
    assert labels[:3000].tolist() == list(range(3000))
    found = labels[3000:] == np.arange(600)
    assert found.mean() > 0.9  # a few pairs are parted by a border
    assert (found | (labels[3000:] == np.arange(3000, 3600))).all()
    again = semantic_duplicates(embeddings, 0.95, cluster_size=200)
    assert np.array_equal(labels, again)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_equal_points_that_no_centroid_parts_still_end(count: int) -> None:
    embeddings = unit(np.ones((count, 8)))
    labels = semantic_duplicates(embeddings, 0.95, cluster_size=100)
    # Chunks of one cluster each keep one: nothing is compared beyond a cluster.
    assert np.array_equal(labels, np.arange(count) // 100 * 100)
