import json
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.render import render, render_jpeg
from pipeline.sources.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    contrasting_colours,
)
from pipeline.sources.scenes.world import Scene, Split, scene

WORLD = ScenesConfig(train=1000, test=1000)

indices = st.integers(0, 10**6)
splits = st.sampled_from(["train", "test"])
sides = st.tuples(st.integers(32, 320), st.integers(0, 192))


def test_the_world_is_as_rich_as_promised() -> None:
    seen = [scene(WORLD, "train", n) for n in range(400)]
    objects = [o for s in seen for o in s.objects]
    assert len({o.shape for o in objects}) == len(SHAPES) >= 6
    assert len({o.colour for o in objects}) == len(COLOURS) >= 8
    assert {o.size for o in objects} == set(SIZES)
    assert {o.texture for o in objects} == set(TEXTURES)
    assert len({s.background for s in seen}) == len(BACKGROUNDS) >= 6
    assert {len(s.objects) for s in seen} == {1, 2, 3, 4, 5}
    assert {r for s in seen for _, r, _ in s.relations} == {
        "left of", "right of", "above", "below", "in front of", "behind",
    }  # fmt: skip
    lengths = [side for s in seen for side in (s.width, s.height)]
    assert min(lengths) >= 96 and max(lengths) <= 320
    assert {s.width > s.height for s in seen} == {True, False}


def some_of(names: Any, least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(names)), min_size=least, unique=True)


@given(st.integers(1, 5), some_of(SHAPES, 2), some_of(SIZES), some_of(TEXTURES), indices)
def test_a_simpler_world_has_only_what_was_asked_for(
    most: int, shapes: list[str], sizes: list[str], textures: list[str], index: int
) -> None:
    config = ScenesConfig(max_objects=most, shapes=shapes, sizes=sizes, textures=textures)
    objects = scene(config, "train", index).objects
    assert 1 <= len(objects) <= most
    assert {o.shape for o in objects} <= set(shapes)
    assert {o.size for o in objects} <= set(sizes)
    assert {o.texture for o in objects} <= set(textures)


def test_labels_are_balanced() -> None:
    shapes = Counter(scene(WORLD, "test", n).prominent.shape for n in range(1000))
    assert min(shapes.values()) > 0.3 * max(shapes.values())


@given(splits, indices, st.integers(0, 5), sides)
def test_scenes_are_sound_and_repeatable(
    split: Split, index: int, seed: int, side: tuple[int, int]
) -> None:
    config = ScenesConfig(seed=seed, min_side=side[0], max_side=side[0] + side[1])
    first = scene(config, split, index)
    assert scene(config, split, index) == first
    assert config.min_side <= min(first.width, first.height)
    assert max(first.width, first.height) <= config.max_side
    assert first.objects
    for item in first.objects:
        points = np.array(item.polygon)
        assert points.min() >= 0 and points.max() <= 1
        assert item.colour in contrasting_colours(first.background)
    names = [(o.shape, o.colour) for o in first.objects]
    assert len(set(names)) == len(names)


@given(splits, indices)
def test_relations_agree_with_the_boxes(split: Split, index: int) -> None:
    shown = scene(WORLD, split, index)
    boxes = [o.box for o in shown.objects]
    for subject, relation, other in shown.relations:
        a, b = boxes[subject], boxes[other]
        if relation in ("left of", "right of"):
            assert (a[0] + a[2] < b[0] + b[2]) == (relation == "left of")
        elif relation in ("above", "below"):
            assert (a[1] + a[3] < b[1] + b[3]) == (relation == "above")
        else:  # painting order decides who is in front, and they must touch
            assert (subject > other) == (relation == "in front of")
            assert max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def test_splits_seeds_and_indices_give_different_scenes() -> None:
    other_seed = ScenesConfig(seed=1)
    drawn = [scene(WORLD, "train", n).annotations() for n in range(200)]
    drawn += [scene(WORLD, "test", n).annotations() for n in range(200)]
    drawn += [scene(other_seed, "train", n).annotations() for n in range(200)]
    assert len(set(drawn)) == 600


def test_annotations_have_the_agreed_form() -> None:
    shown = scene(WORLD, "train", 0)
    graph = json.loads(shown.annotations())
    assert graph.keys() == {"background", "objects", "relations"}
    assert graph["background"] == shown.background
    assert [tuple(r) for r in graph["relations"]] == list(shown.relations)
    for item, thing in zip(graph["objects"], shown.objects, strict=True):
        assert item.keys() == {"category", "attributes", "box", "polygon"}
        assert item["category"] == thing.shape
        assert item["attributes"][-1] == thing.colour
        points = np.array(item["polygon"])
        assert item["box"] == [*points.min(axis=0), *points.max(axis=0)]


def _visible_masks(shown: Scene) -> list[np.ndarray]:
    """What a trainer does: fill the polygons of the JSON in painting order."""
    labels = np.zeros((shown.height, shown.width), np.uint8)
    graph = json.loads(shown.annotations())
    for number, item in enumerate(graph["objects"], start=1):
        points = np.array(item["polygon"]) * (shown.width, shown.height)
        cv2.fillPoly(labels, [points.round().astype(np.int32)], number)
    return [labels == number for number in range(1, len(graph["objects"]) + 1)]


def test_masks_refilled_from_the_graph_cover_the_painted_colours() -> None:
    """Inside an object's mask the picture looks like its colour more than outside."""
    world = ScenesConfig(min_side=128, max_side=160)
    closer = []
    for index in range(60):
        shown = scene(world, "train", index)
        image = cv2.GaussianBlur(render(shown), (0, 0), 1).astype(np.float32)
        assert image.shape == (shown.height, shown.width, 3)
        everywhere = np.any(_visible_masks(shown), axis=0)
        for item, mask in zip(shown.objects, _visible_masks(shown), strict=True):
            if item.texture != "plain" or mask.sum() < 50:
                continue
            distance = np.abs(image - COLOURS[item.colour]).sum(axis=2)
            closer.append(np.median(distance[mask]) < np.median(distance[~everywhere]))
    assert len(closer) > 20
    assert np.mean(closer) > 0.95


def test_prominent_object_has_the_largest_visible_mask() -> None:
    agree = []
    for index in range(100):
        shown = scene(WORLD, "train", index)
        areas = [int(mask.sum()) for mask in _visible_masks(shown)]
        chosen = areas[shown.objects.index(shown.prominent)]
        agree.append(chosen >= 0.9 * max(areas))  # areas are counted on a coarse map
    assert all(agree)


def test_same_scene_gives_the_same_jpeg_and_another_gives_another() -> None:
    first = [render_jpeg(scene(WORLD, "test", n)) for n in range(5)]
    again = [render_jpeg(scene(WORLD, "test", n)) for n in reversed(range(5))][::-1]
    assert first == again
    assert len(set(first)) == 5


@pytest.mark.parametrize("side", [32, 512])
def test_smallest_and_largest_images_render(side: int) -> None:
    world = ScenesConfig(min_side=side, max_side=side)
    for index in range(8):
        assert render(scene(world, "train", index)).shape == (side, side, 3)
