"""Grounding: planted maps, a plain reference of every score, and maps of a real model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tcjepa.evaluate.grounding import (
    CHANCE,
    MIOU,
    OTHER,
    POINTING,
    SPECIFICITY,
    THRESHOLDS,
    NoGroundingError,
    ground,
    halves,
    score,
)
from tcjepa.evaluate.mention_maps import READINGS, mention_maps
from tcjepa.evaluate.mentions import Mention, Mentions, find_mentions
from tcjepa.model.jepa import normalise
from tcjepa.text import HashedEncoder, TextConfig
from tcjepa.watch.attention import word_maps
from tests.tcjepa.evaluate.captioned import GRID, WORDS, box, images_of, tiny_model

CPU = torch.device("cpu")
TEXT = HashedEncoder(TextConfig(width=WORDS))
STAR, RING = box("star", 0.1, 0.1, 0.5, 0.6), box("ring", 0.55, 0.5, 0.9, 0.9)
PATCHES = 64


def scattered(images: int, seed: int = 0) -> tuple[Mentions, list[str]]:
    """Return mentions of one to three objects an image, each named up to three times."""
    rng = np.random.default_rng(seed)
    found = []
    for image in range(images):
        cells = rng.permutation(PATCHES)
        start = 0
        for category in rng.permutation(["star", "ring", "cross"])[: rng.integers(1, 4)]:
            patches = np.zeros(PATCHES, bool)
            patches[cells[start : start + (size := rng.integers(1, 9))]] = True
            start += size
            for caption in range(rng.integers(1, 4)):
                found.append(Mention(image, caption, (0,), str(category), patches))
    return Mentions(found, Counter({"beyond text.max_words": 3}), images), [
        f"{image:032x}" for image in range(images)
    ]


def noise(mentions: Mentions, seed: int = 1) -> np.ndarray:
    shape = (len(mentions.found), len(READINGS), PATCHES)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def truth(mentions: Mentions) -> np.ndarray:
    return np.stack([mention.patches for mention in mentions.found])


def test_perfect_maps_score_one():
    mentions, uids = scattered(60)
    maps = np.where(truth(mentions)[:, None], 1.0, noise(mentions) / 100).astype(np.float32)
    result, tallies = score(maps, mentions, uids)
    assert result.pointing.value == result.miou.value == 1
    assert result.other is not None and result.other.value == 0
    assert result.specificity is not None and result.specificity.value == 1
    assert set(result.per_category.values()) == {1.0}
    assert {reading.specificity for reading in result.readings.values()} == {1.0}
    assert list(tallies) == [POINTING, CHANCE, MIOU, OTHER, SPECIFICITY]
    assert result.left_out == {"beyond text.max_words": 3}


def test_random_maps_score_chance():
    mentions, uids = scattered(1500)
    maps = noise(mentions)
    result, _ = score(maps, mentions, uids)
    chance = result.chance.value
    binomial = math.sqrt(chance * (1 - chance) / result.words)
    assert result.words > 2000
    for reading in result.readings.values():
        assert reading.pointing == pytest.approx(chance, abs=4 * binomial)
        assert reading.specificity == pytest.approx(0, abs=4 * 2**0.5 * binomial)
    assert result.other is not None and result.specificity is not None
    assert result.specificity.value == pytest.approx(0, abs=4 * result.specificity.error)


def test_maps_that_say_nothing_score_chance_exactly_and_mark_nothing():
    mentions, uids = scattered(30)
    maps = np.full((len(mentions.found), len(READINGS), PATCHES), -0.25, np.float32)
    result, _ = score(maps, mentions, uids)
    assert result.pointing.value == pytest.approx(result.chance.value)
    assert result.miou.value == 0


def test_maps_that_find_objects_but_not_words_are_not_specific():
    mentions, uids = scattered(200)
    objects = np.zeros((200, PATCHES), bool)
    for mention in mentions.found:
        objects[mention.image] |= mention.patches
    own = objects[[mention.image for mention in mentions.found]]
    # Every object of the image is marked alike, whatever the word.
    even = np.repeat(own[:, None].astype(np.float32), len(READINGS), axis=1)
    result, tallies = score(even, mentions, uids)
    assert result.pointing.value > 3 * result.chance.value
    assert result.specificity is not None
    assert result.specificity.value == result.specificity.error == 0
    assert {reading.specificity for reading in result.readings.values()} == {0.0}
    assert not tallies[SPECIFICITY].sums[..., 0].any()


def test_an_object_that_is_named_more_often_counts_no_more_for_itself():
    """Five words of A and one of B, and every map on A: 0.667 if words counted alike."""
    at = {"A": np.eye(PATCHES, dtype=bool)[3], "B": np.eye(PATCHES, dtype=bool)[9]}
    found = [
        Mention(image, number, (0,), name, at[name])
        for image in range(20)
        for number, name in enumerate("AAAAAB")
    ]
    mentions = Mentions(found, Counter(), 20)
    maps = np.broadcast_to(at["A"], (120, len(READINGS), PATCHES)).astype(np.float32)
    result, _ = score(maps, mentions, [f"{image:032x}" for image in range(20)])
    assert result.specificity is not None and result.other is not None
    assert (result.specificity.value, result.specificity.error) == (0, 0)
    assert result.other.value == 0.5
    assert result.pointing.value == pytest.approx(5 / 6)  # of words, as ever


def plain_hit(values: list[float], patches: np.ndarray) -> float:
    largest = [patch for patch, value in enumerate(values) if value == max(values)]
    return sum(bool(patches[patch]) for patch in largest) / len(largest)


def plain_iou(values: list[float], patches: np.ndarray, threshold: float) -> float:
    low, high = min(values), max(values)
    marked = {p for p, v in enumerate(values) if (v - low) / (high - low) >= threshold}
    wanted = set(np.flatnonzero(patches).tolist())
    return len(marked & wanted) / len(marked | wanted)


def test_every_score_against_a_plain_reference():
    mentions, uids = scattered(24, seed=3)
    strength = np.arange(len(READINGS))[None, :, None] * 0.4
    maps = (noise(mentions) + strength * truth(mentions)[:, None]).astype(np.float32)
    maps = np.minimum(maps, 1.5)  # so that some are largest on several patches
    result, tallies = score(maps, mentions, uids)
    is_fitted = halves(uids)
    fitted = [w for w, m in enumerate(mentions.found) if is_fitted[m.image]]
    tested = [w for w, m in enumerate(mentions.found) if not is_fitted[m.image]]
    assert (result.words, result.validation_words) == (len(tested), len(fitted))
    patches = [mention.patches for mention in mentions.found]
    validation = {}
    for r, name in enumerate(READINGS):
        lists = maps[:, r].tolist()
        hits = [plain_hit(*pair) for pair in zip(lists, patches, strict=True)]
        overlaps = {
            t: [plain_iou(*pair, t) for pair in zip(lists, patches, strict=True)]
            for t in THRESHOLDS
        }
        reading = result.readings[name]
        assert reading.pointing == pytest.approx(np.mean([hits[w] for w in tested]))
        assert reading.validation_pointing == pytest.approx(np.mean([hits[w] for w in fitted]))
        fits = {t: np.mean([own[w] for w in fitted]) for t, own in overlaps.items()}
        assert reading.validation_miou == pytest.approx(max(fits.values()))
        assert fits[reading.threshold] == pytest.approx(max(fits.values()))
        at_threshold = overlaps[reading.threshold]
        assert reading.miou == pytest.approx(np.mean([at_threshold[w] for w in tested]))
        validation[name] = reading.validation_pointing
    assert result.reading == max(validation, key=lambda name: validation[name])
    assert result.threshold == result.readings[result.reading].threshold
    chosen = result.readings[result.reading]
    assert (result.pointing.value, result.miou.value) == pytest.approx(
        (chosen.pointing, chosen.miou)
    )
    others, differences = [], []
    for image in {mentions.found[w].image for w in tested}:
        words: dict[str, list[int]] = {}
        for w in tested:
            if mentions.found[w].image == image:
                words.setdefault(mentions.found[w].category, []).append(w)
        if len(words) < 2:
            continue
        for_itself, against_it = [], []
        for category, of_it in words.items():
            hits: dict[str, list[float]] = {name: [] for name in words}
            for w in of_it:
                values = maps[w, READINGS.index(result.reading)].tolist()
                for name, named in words.items():
                    hits[name].append(plain_hit(values, mentions.found[named[0]].patches))
            means = {name: np.mean(own) for name, own in hits.items()}
            for_itself.append(means.pop(category))
            against_it.append(np.mean(list(means.values())))
        others.append(np.mean(against_it))
        differences.append(np.mean(for_itself) - np.mean(against_it))
    assert len(differences) > 5
    assert result.other is not None and result.specificity is not None
    assert result.other.value == pytest.approx(np.mean(others))
    assert result.specificity.value == pytest.approx(np.mean(differences))
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    assert result.specificity.error == pytest.approx(error, rel=1e-5)
    assert chosen.specificity == pytest.approx(result.specificity.value)
    for name, value in {
        POINTING: result.pointing, CHANCE: result.chance, MIOU: result.miou,
        OTHER: result.other, SPECIFICITY: result.specificity,
    }.items():  # fmt: skip
        assert tallies[name].value == pytest.approx(value.value, abs=1e-6)
    tested_images = {uids[m.image] for m in mentions.found if not is_fitted[m.image]}
    assert set(tallies[POINTING].images) == tested_images


def test_what_is_reported_is_chosen_without_the_test_half():
    mentions, uids = scattered(80)
    maps = noise(mentions)
    tested = ~halves(uids)[[mention.image for mention in mentions.found]]
    before, _ = score(maps, mentions, uids)
    planted = next(r for r, name in enumerate(READINGS) if name != before.reading)
    maps[tested, planted] = truth(mentions)[tested]
    after, _ = score(maps, mentions, uids)
    assert (after.reading, after.threshold) == (before.reading, before.threshold)
    assert after.pointing == before.pointing
    assert after.readings[READINGS[planted]].pointing == 1


def test_without_two_objects_in_an_image_there_is_no_specificity():
    mentions, uids = scattered(40)
    alone = [m for m in mentions.found if m.category == "star"]
    result, tallies = score(noise(mentions)[: len(alone)], replace(mentions, found=alone), uids)
    assert result.other is None and result.specificity is None
    assert {reading.specificity for reading in result.readings.values()} == {None}
    assert list(tallies) == [POINTING, CHANCE, MIOU]


@pytest.mark.parametrize("pairs", [1, 2])
def test_one_image_with_two_objects_gives_no_specificity(pairs: int):
    mentions, uids = scattered(40)
    tested = sorted({m.image for m in mentions.found if not halves(uids)[m.image]})
    beside = [i for i in tested if len({m.category for m in mentions.found if m.image == i}) > 1]
    first = {m.image: m.category for m in reversed(mentions.found)}
    kept = [m for m in mentions.found if m.image in beside[:pairs] or m.category == first[m.image]]
    result, tallies = score(
        noise(replace(mentions, found=kept)), replace(mentions, found=kept), uids
    )
    assert (result.specificity is None) == (result.other is None) == (pairs == 1)
    assert (SPECIFICITY in tallies) == (OTHER in tallies) == (pairs == 2)
    if pairs == 2:
        assert result.specificity is not None and result.specificity.error > 0


def test_halves_are_a_function_of_the_uid():
    uids = [f"{number:032x}" for number in range(1000)]
    whole = halves(uids)
    assert 430 < whole.sum() < 570
    assert (halves(uids[::-1]) == whole[::-1]).all()


def scenes(count: int):
    captions = [
        ["a red star by the ring", "no name", "Star-like star"][n % 2 :] for n in range(count)
    ]
    return images_of([*captions, []], [[STAR, RING]] * (count + 1))


def test_maps_are_those_of_the_words_whatever_the_batch():
    model, test = tiny_model().train(), scenes(5)
    mentions = find_mentions(test, TEXT.spans_of, GRID).found
    # One name of several pieces, as of a tokenizer that cuts words.
    mentions[0] = replace(mentions[0], pieces=(1, 2))
    captions = TEXT.encode(test.texts(range(len(test))), CPU)
    found = [mention_maps(model, TEXT, test, mentions, CPU, batch=b) for b in (2, 100)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert model.training
    reading = 0
    for role in ("target", "context"):
        all_layers, last = (
            word_maps(model, normalise(test.images), captions, tokens=role, layer=layer)
            for layer in (None, -1)
        )
        for value in ("cosine", "weights"):
            for maps in (all_layers, last):
                for word, mention in enumerate(mentions):
                    own = getattr(maps, value)[mention.image, mention.caption]
                    pieces = own[list(mention.pieces)]
                    wanted = pieces.mean(0) if value == "cosine" else pieces.sum(0)
                    np.testing.assert_allclose(
                        found[1][word, reading], wanted.numpy(), rtol=1e-4, atol=1e-5
                    )
                reading += 1
    assert reading == len(READINGS)


def test_an_untrained_model_is_measured_and_repeats():
    test = scenes(12)
    results = [ground(tiny_model(), TEXT, test, CPU, batch=5) for _ in range(2)]
    assert results[0][0] == results[1][0]
    result, tallies = results[0]
    assert 0 <= result.pointing.value <= 1 and set(result.per_category) == {"star", "ring"}
    assert result.images == len(tallies[POINTING]) == int((~halves(test.uids[:12])).sum())


def test_one_test_image_has_no_standard_error_and_is_not_measured():
    # By their uids, the third of the images is of the validation half, the others test.
    assert halves([f"{number:032x}" for number in range(3)]).tolist() == [False, False, True]
    said = ["a star"]
    one, two = (images_of([said, own, said], [[STAR]] * 3) for own in ([], said))
    with pytest.raises(NoGroundingError, match=r"2 words of 3 .* a test half of two images"):
        ground(tiny_model(), TEXT, one, CPU, batch=2)
    assert ground(tiny_model(), TEXT, two, CPU, batch=2)[0].images == 2


def test_why_it_cannot_be_measured():
    bare = images_of([["a star"]], [None])
    with pytest.raises(NoGroundingError, match="no test image with captions is annotated"):
        ground(tiny_model(), TEXT, bare, CPU, batch=2)
    few = images_of([["a star"]], [[STAR]])
    with pytest.raises(NoGroundingError, match="too few for a validation and a test half"):
        ground(tiny_model(), TEXT, few, CPU, batch=2)
    placeless = images_of([["a star"]] * 4, [["star"]] * 4)
    said = r'0 words of 4 .* two images; 4 more name an .* give each a "box"'
    with pytest.raises(NoGroundingError, match=said):
        ground(tiny_model(), TEXT, placeless, CPU, batch=2)
    model = tiny_model()
    torch.nn.init.constant_(model.predictor.embed.weight, torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        ground(model, TEXT, scenes(12), CPU, batch=5)
