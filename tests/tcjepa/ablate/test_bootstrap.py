"""The bootstrap against a plain one by loops and against scipy's; its laws; its coverage."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.ablate.bootstrap import Combined, ImageDraws, Repeated, combine, seed_shares, share
from tcjepa.evaluate.tally import Tally, ratios

SEEDS = (0, 1, 2)
IMAGES = [f"image {i}" for i in range(60)]


def tallied(seed: int, level: float = 0.5, classes: int = 3) -> Tally:
    """An mIoU-like tally."""
    draw = np.random.default_rng(seed)
    union = draw.integers(0, 50, (len(IMAGES), classes))
    return Tally.of_ratios(IMAGES, draw.binomial(union, level), union)


def repeated(draws: ImageDraws, tallies: dict[int, Tally], scale: float = 1) -> Repeated:
    return Repeated(
        {seed: scale * tally.value for seed, tally in tallies.items()},
        {seed: scale * draws.values(tally) for seed, tally in tallies.items()},
    )


def by_loops(tallies: dict[int, Tally], replicates: int) -> list[float]:
    """The hierarchical bootstrap of a mean over seeds, spelt out."""
    draw = random.Random(0)
    found = []
    for _ in range(replicates):
        images = draw.choices(range(len(IMAGES)), k=len(IMAGES))
        seeds = draw.choices(list(tallies), k=len(tallies))
        values = []
        for seed in seeds:
            groups = tallies[seed].sums.astype(float)
            shares = []
            for group in range(groups.shape[1]):
                above = sum(groups[image, group, 0] for image in images)
                below = sum(groups[image, group, 1] for image in images)
                shares.append(above / below)
            values.append(sum(shares) / len(shares))
        found.append(sum(values) / len(values))
    return found


def test_agrees_with_loops() -> None:
    tallies = {seed: tallied(seed, 0.4 + 0.05 * seed) for seed in SEEDS}
    ours = combine([(1, "a")], {"a": repeated(ImageDraws(IMAGES), tallies)})
    assert ours is not None and ours.interval is not None
    plain = np.quantile(by_loops(tallies, 1000), [0.025, 0.975])
    width = plain[1] - plain[0]
    assert ours.interval == pytest.approx(plain, abs=0.12 * width)
    assert ours.value == pytest.approx(np.mean([t.value for t in tallies.values()]))


def test_agrees_with_scipys_bootstrap_of_a_paired_difference() -> None:
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(3)
    better, worse = draw.binomial(1, [[0.7], [0.6]], (2, len(IMAGES)))
    draws = ImageDraws(IMAGES, 4000)
    arms = {
        name: repeated(draws, {0: Tally.of_values(IMAGES, hits)})
        for name, hits in (("better", better), ("worse", worse))
    }
    ours = combine([(1, "better"), (-1, "worse")], arms)
    assert ours is not None and ours.interval is not None
    theirs = scipy.bootstrap(
        (better, worse),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours.interval == pytest.approx(list(theirs), abs=0.03)


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=20)
def test_identical_arms_differ_by_exactly_nothing(seed: int, per_image: bool) -> None:
    draws = ImageDraws(IMAGES, 50)
    tallies = {s: tallied(seed + s) for s in SEEDS}
    if per_image:
        copies = {s: Tally(t.images, t.sums.copy()) for s, t in tallies.items()}
        arms = {"a": repeated(draws, tallies), "b": repeated(draws, copies)}
    else:
        flat = {s: np.full(50, t.value) for s, t in tallies.items()}
        arms = {n: Repeated({s: t.value for s, t in tallies.items()}, flat) for n in "ab"}
    found = combine([(1, "a"), (-1, "b")], arms)
    assert found is not None
    assert (found.value, found.interval, found.student) == (0, (0, 0), (0, 0))


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-5, 5))
@settings(max_examples=30)
def test_recovery_does_not_depend_on_scale_or_origin(seed: int, scale: float, at: float) -> None:
    draw = np.random.default_rng(seed)
    levels = {"clean": 3.0, "noisy": 1.0, "remedy": 2.2}
    spread = {n: {s: draw.normal(0, 0.2, 101) for s in SEEDS} for n in levels}

    def shares(factor: float, origin: float) -> list[float]:
        arms = {}
        for name, level in levels.items():
            values = {s: factor * (level + own[0]) + origin for s, own in spread[name].items()}
            drawn = {s: factor * (level + own[1:]) + origin for s, own in spread[name].items()}
            arms[name] = Repeated(values, drawn)
        won = combine([(1, "remedy"), (-1, "noisy")], arms)
        lost = combine([(1, "clean"), (-1, "noisy")], arms)
        assert won is not None and lost is not None
        found = share(won, lost)
        assert found.value is not None and found.interval is not None
        assert found.student is not None
        return [found.value, *found.interval, *found.student]

    assert shares(scale, at) == pytest.approx(shares(1, 0), rel=1e-5, abs=1e-6)


def test_recovery_of_clean_is_all_of_noisy_nothing_and_of_no_loss_undefined() -> None:
    draws = ImageDraws(IMAGES, 200)
    arms = {
        "clean": repeated(draws, {s: tallied(s, 0.8) for s in SEEDS}),
        "noisy": repeated(draws, {s: tallied(s, 0.4) for s in SEEDS}),
    }
    lost = combine([(1, "clean"), (-1, "noisy")], arms)
    assert lost is not None
    everything = share(lost, lost)
    assert everything.value == 1
    assert everything.interval == everything.student == pytest.approx((1, 1))
    nothing = combine([(0, "noisy"), (0, "clean")], arms)
    assert nothing is not None
    assert share(nothing, lost).value == 0
    assert share(lost, nothing).value is None
    gained = combine([(1, "noisy"), (-1, "clean")], arms)
    assert gained is not None and gained.interval is not None and gained.interval[1] < 0
    worse = share(gained, gained)  # noise did good, and an arm undid it: that wins nothing back
    assert (worse.value, worse.interval, worse.student) == (None, None, None)


def test_a_share_of_a_loss_that_is_now_and_then_nothing_is_undefined() -> None:
    drawn = np.ones((2000, 1))
    drawn[:50] = 0  # few enough for an interval of the loss above 0
    lost = Combined((0,), (1.0,), drawn)
    assert lost.interval is not None and lost.interval[0] > 0
    found = share(Combined((0,), (0.5,), np.full((2000, 1), 0.5)), lost)
    assert (found.value, found.interval, found.student) == (None, None, None)


def test_a_loss_that_is_now_and_then_a_gain_leaves_the_share_without_a_bound() -> None:
    """Its ratios would stand at the low end, and the interval would have a high one."""
    drawn = np.linspace(1.5, 2.5, 2000)[:, None]
    drawn[:30] = -0.01
    lost = Combined((0,), (2.0,), drawn)
    assert lost.interval is not None and lost.interval[0] > 0
    found = share(Combined((0,), (1.0,), np.ones((2000, 1))), lost)
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(1 / 2.5, abs=0.02)
    assert found.interval[1] > 1 / 1.53


def test_arms_are_paired_by_the_seeds_they_share() -> None:
    draws = ImageDraws(IMAGES, 100)
    arms = {
        "a": repeated(draws, {s: tallied(s) for s in (0, 1, 2)}),
        "b": repeated(draws, {s: tallied(s) for s in (1, 2, 5)}),
        "c": repeated(draws, {9: tallied(9)}),
    }
    found = combine([(1, "a"), (-1, "b")], arms)
    assert found is not None
    assert found.seeds == (1, 2)
    assert found.interval == (0, 0)
    assert combine([(1, "a"), (-1, "c")], arms) is None
    assert combine([(1, "a"), (-1, "absent")], arms) is None


def test_images_are_paired_by_their_keys() -> None:
    draws = ImageDraws(IMAGES, 100)
    tally = tallied(0)
    backwards = Tally(tally.images[::-1], tally.sums[::-1].copy())
    assert draws.values(backwards) == pytest.approx(draws.values(tally), rel=1e-5)
    half = Tally(tally.images[::2], tally.sums[::2].copy())
    assert np.std(draws.values(half)) > np.std(draws.values(tally))
    with pytest.raises(KeyError, match="elsewhere"):
        draws.values(Tally(("elsewhere",), tally.sums[:1]))


def test_draws_are_the_same_every_time_and_have_the_set_s_size() -> None:
    first, second = ImageDraws(IMAGES, 30), ImageDraws(IMAGES, 30)
    counts = Tally.of_ratios(IMAGES, np.ones((60, 1)), np.full((60, 1), 60))
    assert first.values(counts) == pytest.approx(np.full(30, 1 / 60), rel=1e-6)
    assert np.array_equal(first.values(tallied(1)), second.values(tallied(1)))
    shares = seed_shares(SEEDS, 500)
    assert shares.sum(axis=1) == pytest.approx(np.ones(500))
    assert set(np.unique(shares.round(6))) == {0, 0.333333, 0.666667, 1}


def test_one_seed_without_images_has_no_interval() -> None:
    one = combine([(1, "a")], {"a": Repeated({0: 2.0}, {0: np.full(10, 2.0)})})
    assert one is not None
    assert (one.value, one.interval, one.student) == (2.0, None, None)
    with pytest.raises(ValueError, match="no pairs"):
        share(one, Combined((1,), (1.0,), np.ones((10, 1))))


def simulated(draw: np.random.Generator, seeds: int, images: int) -> dict[int, Tally]:
    """Hits of a classifier: images differ in how hard they are, seeds in how good they are."""
    hard = draw.normal(0, 1, images)
    keys = [str(i) for i in range(images)]
    found = {}
    for seed in range(seeds):
        logits = 0.5 + hard + draw.normal(0, 0.3)
        found[seed] = Tally.of_values(keys, draw.random(images) < 1 / (1 + np.exp(-logits)))
    return found


def test_intervals_cover_the_truth() -> None:
    """Nominally 95%; eight seeds cost the percentile bootstrap some of it, never half."""
    draw = np.random.default_rng(7)
    big = draw.normal(0, 1, 200_000) + draw.normal(0, 0.3, 200_000) + 0.5
    truth = float((1 / (1 + np.exp(-big))).mean())
    covered = 0
    for _ in range(200):
        tallies = simulated(draw, 8, 150)
        draws = ImageDraws(tallies[0].images, 300)
        found = combine([(1, "a")], {"a": repeated(draws, tallies)})
        assert found is not None and found.interval is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert 0.85 < covered / 200 <= 1


def test_values_are_the_measures_of_the_drawn_images() -> None:
    draws = ImageDraws(IMAGES, 40)
    only = [Tally.of_values(IMAGES, np.eye(60)[i]) for i in range(60)]
    counts = np.stack([draws.values(tally) for tally in only], axis=1) * 60  # (R, n)
    assert counts.sum(axis=1) == pytest.approx(np.full(40, 60))
    tally = tallied(4)
    for times, value in zip(counts.round().astype(int), draws.values(tally), strict=True):
        drawn = np.repeat(tally.sums, times, axis=0).sum(axis=0, dtype=float)
        assert value == pytest.approx(float(ratios(drawn)), rel=1e-5)


@pytest.mark.parametrize(("seeds", "share_covered"), [(3, 0.75), (8, 0.88)])
def test_few_seeds_make_the_bootstrap_as_narrow_as_its_description_says(
    seeds: int, share_covered: float
) -> None:
    values = np.random.default_rng(5).normal(size=(4000, seeds))
    covered = 0
    for own in values:
        found = Combined(tuple(range(seeds)), tuple(own), np.broadcast_to(own, (400, seeds)))
        assert found.interval is not None
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert covered / len(values) == pytest.approx(share_covered, abs=0.03)
