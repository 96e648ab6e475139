"""`alignment: linear` on composed scenes whose captions are known to be right or swapped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.filters.pixels import thumbnail_of
from pipeline.scorers import alignment_fit, alignment_images
from pipeline.scorers.alignment import LinearAlignment, score
from pipeline.scorers.alignment_fit import fit
from pipeline.scorers.alignment_images import WIDTH, image_features
from pipeline.scorers.alignment_statistics import accumulate, folds_of
from pipeline.scorers.alignment_text import text_features
from pipeline.scorers.config import LinearAlignmentConfig
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.render import render_jpeg
from pipeline.sources.scenes.world import Scene, scene

CONFIG = LinearAlignmentConfig(folds=2, components=64, text_width=512)
IMAGES = 1000
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    thumbnails: list[NDArray[np.uint8] | None]
    features: Floats
    texts: list[str]
    owner: NDArray[np.int64]
    several: NDArray[np.bool_]  # (m,) captions that name two objects
    swapped: NDArray[np.bool_]  # (n,) images whose captions are another image's
    uids: list[str]

    def part(self, start: int, stop: int) -> tuple[Floats, list[str], NDArray[np.int64], list[str]]:
        captions = np.flatnonzero((self.owner >= start) & (self.owner < stop))
        texts = [self.texts[i] for i in captions]
        return (
            self.features[start:stop],
            texts,
            self.owner[captions] - start,
            self.uids[start:stop],
        )


def _captions(world: Scene, draw: random.Random) -> list[tuple[str, bool]]:
    names = [" ".join(["a", *item.attributes, item.shape]) for item in world.objects]
    found = [(f"{name} on a {world.background}", False) for name in draw.sample(names, 1)]
    if len(names) > 1:
        for _ in range(2):
            found.append(("{} and {}".format(*draw.sample(names, 2)), True))
    return found


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def world() -> World:
    config, draw = ScenesConfig(), random.Random(0)
    scenes = [scene(config, "train", index) for index in range(IMAGES)]
    captions = [_captions(one, draw) for one in scenes]
    chosen = [index for index in range(IMAGES) if draw.random() < 0.3]
    given = list(captions)
    for index, other in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        given[index] = captions[other]
    thumbnails = [thumbnail_of(render_jpeg(one)) for one in scenes]
    return World(
        thumbnails=thumbnails,
        features=image_features(thumbnails),
        texts=[text for group in given for text, _ in group],
        owner=np.repeat(np.arange(IMAGES), [len(group) for group in given]),
        several=np.array([two for group in given for _, two in group]),
        swapped=np.isin(np.arange(IMAGES), chosen),
        uids=[f"{index:032x}" for index in range(IMAGES)],
    )


@pytest.fixture(scope="module")
def model(world: World) -> LinearAlignment:
    parts = (accumulate(*world.part(at, at + 200), CONFIG) for at in range(0, IMAGES, 200))
    fitted = fit(parts, CONFIG)
    assert fitted is not None
    return fitted


def _auc(scores: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    difference = scores[right][:, None] - scores[~right]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def test_swapped_captions_score_low(world: World, model: LinearAlignment) -> None:
    scores = score(model, *world.part(0, IMAGES))
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    sets = np.bincount(world.owner, scores) / np.bincount(world.owner)
    assert _auc(sets, ~world.swapped) > 0.9
    right = ~world.swapped[world.owner]
    assert _auc(scores[world.several], right[world.several]) > 0.85
    # Calibrated: right captions lie above even odds, swapped ones below.
    assert scores[right].mean() > 0.6
    assert scores[~right].mean() < 0.4


def test_memorised_captions_do_not_vouch_for_themselves(world: World) -> None:
    # Every caption swapped: nothing can be learned, so right and wrong images score the same.
    features, texts, owner, uids = world.part(0, IMAGES)
    shuffled = np.random.RandomState(0).permutation(IMAGES)
    fitted = fit([accumulate(features[shuffled], texts, owner, uids, CONFIG)], CONFIG)
    assert fitted is not None
    scores = score(fitted, features[shuffled], texts, owner, uids)
    strangers = score(fitted, np.roll(features[shuffled], 1, 0), texts, owner, uids)
    assert abs(float(scores.mean() - strangers.mean())) < 0.05


def test_the_result_does_not_depend_on_parts(world: World, model: LinearAlignment) -> None:
    whole = fit([accumulate(*world.part(0, IMAGES), CONFIG)], CONFIG)
    assert whole is not None
    a, b = (score(m, *world.part(0, IMAGES)) for m in (model, whole))
    np.testing.assert_allclose(a, b, atol=2e-4)
    halves = [score(model, *world.part(at, at + 200)) for at in range(0, IMAGES, 200)]
    np.testing.assert_allclose(np.concatenate(halves), a, atol=1e-4)


def test_equal_input_gives_equal_bytes(world: World, model: LinearAlignment) -> None:
    parts = [accumulate(*world.part(at, at + 200), CONFIG) for at in range(0, IMAGES, 200)]
    again = fit(parts, CONFIG)
    assert again is not None
    assert again.to_bytes() == model.to_bytes()
    read = LinearAlignment.from_bytes(model.to_bytes())
    np.testing.assert_array_equal(read.image_map, model.image_map)


def test_what_cannot_be_scored_is_nan(world: World, model: LinearAlignment) -> None:
    features = image_features([world.thumbnails[0], None, thumbnail_of(b"no image")])
    assert features.shape == (3, WIDTH)
    assert np.isfinite(features[0]).all()
    assert np.isnan(features[1:]).all()
    texts = ["a red star", "of the and 12", "a red star"]
    scores = score(model, features, texts, [0, 0, 1], ["a", "b", "c"])
    assert np.isfinite(scores[0])
    assert np.isnan(scores[1:]).all()
    statistics = accumulate(features, texts, [0, 0, 1], ["a", "b", "c"], CONFIG)
    assert statistics.count.sum() == 1
    assert fit([statistics], CONFIG) is None
    assert fit([], CONFIG) is None


def test_folds_depend_on_the_uid_alone_and_are_balanced() -> None:
    uids = [f"{number:032x}" for number in range(2000)]
    folds = folds_of(uids, 4)
    assert folds_of(uids[7:9], 4).tolist() == folds[7:9].tolist()
    assert np.bincount(folds, minlength=4).min() > 400


def test_text_features_tie_attributes_to_their_nouns() -> None:
    one, other, plural, empty = text_features(
        ["a red star and a blue ring", "a blue star and a red ring", "Red stars, blue rings", "…"],
        1024,
    )
    np.testing.assert_array_equal(one[:512], other[:512])
    assert (one[512:] != other[512:]).any()
    np.testing.assert_array_equal(one, plural)
    assert not empty.any()


@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_directions_are_those_of_an_svd(shape: tuple[int, int]) -> None:
    draw = np.random.RandomState(0)
    rank = 3  # fewer than either side: LAPACK's own SVD may give up on such
    matrix = draw.normal(size=(shape[0], rank)) @ draw.normal(size=(rank, shape[1]))
    left, right = alignment_fit._singular_vectors(matrix)
    plain_left, _, plain_right = np.linalg.svd(matrix, full_matrices=False)
    assert left.shape == plain_left.shape and right.shape == plain_right.shape
    for one, other in ((left.T, plain_left.T), (right, plain_right)):
        np.testing.assert_allclose(np.abs((one[:rank] * other[:rank]).sum(1)), 1.0, atol=1e-6)


def test_image_features_equal_their_plain_definition(world: World) -> None:
    small = world.thumbnails[0]
    assert small is not None
    half = cv2.resize(small, (32, 32), interpolation=cv2.INTER_AREA)
    plain = [_plain_colours(half), _plain_responses(half, 3), _plain_responses(small, 4)]
    (fast,) = image_features([small])
    np.testing.assert_allclose(fast, np.concatenate(plain), atol=1e-4)


def _plain_colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    levels = np.array([0.0, 85.0, 170.0, 255.0])
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(64, 3)
    values = (pixels >> 3) * 8.0 + 4.0
    near = np.exp(-((values[:, :, None] - grid) ** 2).sum(-1) / (2 * 40.0**2))
    shares = near / near.sum(-1, keepdims=True)
    blocks = [shares, *(shares[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16))]
    return np.sqrt(np.concatenate([block.mean((0, 1)) for block in blocks]))


def _plain_responses(pixels: NDArray[np.uint8], stride: int) -> NDArray[np.float64]:
    # The bank is made to subtract half the mean of a place: give its own mean back.
    bank = alignment_images._bank().astype(np.float64)
    bank += bank.mean(0)
    found = []
    for y in range(0, len(pixels) - 5, stride):
        for x in range(0, len(pixels) - 5, stride):
            place = pixels[y : y + 6, x : x + 6].reshape(-1) / 255 - 0.5
            place -= place.mean() / 2
            found.append(place @ bank / np.sqrt((place**2).sum() + 0.3) - 0.3)
    kept = np.maximum(found, 0)
    return np.concatenate([np.sqrt(kept.mean(0)), kept.max(0)])
