"""Laws of the collapse monitors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.evaluate.spectrum import feature_std, lidar, rankme

shapes = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))


def features(shape: tuple[int, int, int]) -> torch.Tensor:
    rows, width, seed = shape
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(shapes)
def test_rank_lies_between_one_and_the_smaller_side(shape):
    assert 1 - 1e-4 <= rankme(features(shape)) <= min(shape[:2]) + 1e-3


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(1e-3, 1e3))
def test_scale_does_not_matter(shape, scale):
    rows = features(shape)
    assert rankme(rows * scale) == pytest.approx(rankme(rows), rel=1e-4)
    assert feature_std(rows * scale) == pytest.approx(feature_std(rows), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_rotation_does_not_matter(shape):
    rows = features(shape)
    rotation = torch.linalg.qr(features((shape[1], shape[1], 7)).double()).Q.float()
    assert rankme(rows @ rotation) == pytest.approx(rankme(rows), rel=1e-3)


def test_one_direction_is_rank_one_and_an_orthonormal_set_is_full():
    assert rankme(torch.arange(1.0, 51.0)[:, None] * torch.randn(8)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.linalg.qr(torch.randn(50, 16)).Q) == pytest.approx(16, abs=1e-2)


def test_definition_on_a_known_spectrum():
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0])
    shares = singular / 8
    expected = float((-(shares * shares.log()).sum()).exp())
    assert rankme(singular.diag()) == pytest.approx(expected, rel=1e-5)


def test_many_rows_are_thinned_evenly(monkeypatch):
    rows = torch.cat([torch.eye(3).repeat(40, 1), torch.ones(1, 3)])
    exact = rankme(rows)
    monkeypatch.setattr("tcjepa.evaluate.spectrum._ENOUGH", 60)
    assert rankme(rows) == pytest.approx(exact, rel=0.1)


def test_collapsed_features_have_no_std_and_gaussian_ones_about_one():
    assert feature_std(torch.ones(10, 4)) == pytest.approx(0, abs=1e-6)
    spread = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    assert rankme(torch.zeros(5, 3)) == 0


def test_refusals():
    for measure in (rankme, feature_std):
        with pytest.raises(ValueError, match="non-empty"):
            measure(torch.zeros(0, 3))
        with pytest.raises(ValueError, match="not finite"):
            measure(torch.tensor([[float("nan")]]))


def seen(n: int, q: int, between: list[float], within: list[float], seed: int = 0) -> torch.Tensor:
    """Return features (n, q, D) whose images and views vary by the given deviations."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, len(between), generator=generator) * torch.tensor(between)
    views = torch.randn(n, q, len(within), generator=generator) * torch.tensor(within)
    return images + views


def test_lidar_counts_only_directions_that_tell_images_apart():
    equal = seen(2000, 10, [1.0] * 8, [0.1] * 8)
    assert lidar(equal) == pytest.approx(8, abs=0.2)
    noisy = seen(2000, 10, [1.0] * 4 + [0.0] * 4, [0.1] * 4 + [1.0] * 4)
    assert lidar(noisy) == pytest.approx(4, abs=0.2)
    assert rankme(noisy[:, 0]) > 7  # which RankMe does not see


def test_lidar_is_the_generalised_eigenproblems_entropy():
    """Against scipy's generalised eigenvalues of (Σ_b, Σ_w + δI), loops for the covariances."""
    linalg = pytest.importorskip("scipy.linalg")
    views = seen(40, 5, [1.0, 0.5, 0.2], [0.3, 0.1, 0.2]).double()
    n, q, width = views.shape
    between, within = torch.zeros(width, width).double(), torch.zeros(width, width).double()
    grand = views.mean((0, 1))
    for image in views:
        centre = image.mean(0)
        between += torch.outer(centre - grand, centre - grand) / (n - 1)
        for view in image:
            within += torch.outer(view - centre, view - centre) / (n * (q - 1))
    values = linalg.eigh(between, within + 1e-4 * torch.eye(width), eigvals_only=True)
    shares = torch.tensor(values / values.sum()) + 1e-7
    assert lidar(views.float()) == pytest.approx(
        float((-(shares * shares.log()).sum()).exp()), rel=1e-4
    )


def test_lidar_of_one_point_is_nothing_and_of_one_view_refused():
    assert lidar(torch.zeros(4, 3, 2)) == 0.0
    with pytest.raises(ValueError, match="q >= 2"):
        lidar(torch.zeros(4, 1, 2))
