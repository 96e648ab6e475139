"""Masks against a slow fill, and against images that went through the evaluation crop."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcjepa.data.augment import centre_crop
from tcjepa.evaluate.annotations import AnnotatedObject, AnnotationError, parse
from tcjepa.evaluate.rasterise import (
    IGNORED,
    categories,
    crop_polygons,
    rasterise,
    rasterise_objects,
)


def scene(*objects: tuple[str, list[list[float]]]) -> list[AnnotatedObject]:
    return parse([{"category": c, "polygon": p} for c, p in objects])


def slow_inside(x: float, y: float, vertices: np.ndarray) -> bool:
    inside = False
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x:
            inside = not inside
    return inside


points = st.lists(
    st.tuples(st.floats(-0.3, 1.3), st.floats(-0.3, 1.3)).map(list), min_size=3, max_size=7
)


@settings(max_examples=60, deadline=None)
@given(points, st.integers(20, 60), st.integers(20, 60))
def test_agrees_with_a_slow_fill(polygon, width, height):
    one = scene(("a", polygon))
    mask = rasterise(one, 14, ["a"], width=width, height=height)
    (vertices,) = crop_polygons(one, width, height, 14)
    assert vertices is not None
    slow = [[slow_inside(x + 0.5, y + 0.5, vertices) for x in range(14)] for y in range(14)]
    assert (mask == np.array(slow)).all()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (91, 64)])
def test_lines_up_with_the_image_crop(width, height):
    polygon = [[0.3, 0.2], [0.8, 0.4], [0.6, 0.9], [0.25, 0.7]]
    # Painted four times finer by the slow rule's own definition, so the image is no copy of ours.
    ys, xs = np.mgrid[0 : 4 * height, 0 : 4 * width]
    inside = np.zeros(xs.shape, bool)
    scaled = np.array(polygon) * [4 * width, 4 * height]
    for (x0, y0), (x1, y1) in zip(scaled, np.roll(scaled, -1, axis=0), strict=True):
        spans = (y0 <= ys) != (y1 <= ys)
        inside ^= spans & (x0 + (ys - y0) / (y1 - y0 + 1e-12) * (x1 - x0) <= xs)
    image = inside.reshape(height, 4, width, 4).mean(axis=(1, 3)) * 255
    pixels = np.repeat(image.astype(np.uint8)[:, :, None], 3, axis=2)
    cropped = centre_crop(pixels, 56)[0] > 127
    mask = rasterise(scene(("a", polygon)), 56, ["a"], width=width, height=height) == 1
    union = (cropped | mask).sum()
    assert (cropped & mask).sum() / union > 0.96
    ours, theirs = (np.argwhere(m).mean(axis=0) for m in (mask, cropped))
    assert np.abs(ours - theirs).max() < 0.5  # pixels: no systematic shift


def test_later_objects_are_in_front_and_unknown_ones_are_ignored():
    whole = [[-1, -1], [2, -1], [2, 2], [-1, 2]]
    left = [[-1, -1], [0.5, -1], [0.5, 2], [-1, 2]]
    mask = rasterise(scene(("b", whole), ("a", left)), 8, ["a", "b"], width=16, height=16)
    assert (mask[:, :4] == 1).all() and (mask[:, 4:] == 2).all()
    mask = rasterise(scene(("b", whole), ("new", left)), 8, ["b"], width=16, height=16)
    assert (mask[:, :4] == IGNORED).all() and (mask[:, 4:] == 1).all()


def test_neighbours_share_no_pixel_and_leave_none_out():
    cut = [[0.31, -1], [0.52, 2]]
    left = scene(("a", [[-1, -1], *cut, [-1, 2]]))
    right = scene(("a", [*reversed(cut), [2, -1], [2, 2]][::-1]))
    both = [rasterise(part, 32, ["a"], width=40, height=64) for part in (left, right)]
    right_only = scene(("a", [cut[0], [2, -1], [2, 2], cut[1]]))
    both[1] = rasterise(right_only, 32, ["a"], width=40, height=64)
    assert (both[0] + both[1] == 1).all()


def test_box_stands_in_for_a_missing_polygon():
    boxed = parse([{"category": "a", "box": [0.25, 0.25, 0.75, 0.5]}])
    outlined = scene(("a", [[0.25, 0.25], [0.75, 0.25], [0.75, 0.5], [0.25, 0.5]]))
    masks = [rasterise(x, 28, ["a"], width=100, height=80) for x in (boxed, outlined)]
    assert (masks[0] == masks[1]).all() and masks[0].any()


def test_categories_are_those_with_a_place_sorted():
    one = parse(json.dumps(["sky", *({"category": c, "box": [0, 0, 1, 1]} for c in ("b", "a"))]))
    assert categories([one, parse(["sea"])]) == ["a", "b"]
    assert rasterise([], 8, [], width=9, height=9).sum() == 0


def test_objects_without_a_place_are_not_drawn_and_keep_their_number():
    left = {"category": "b", "box": [0, 0, 0.5, 1]}
    objects = parse(["a", left, "b"])
    assert crop_polygons(objects, 10, 10, 8)[::2] == [None, None]
    assert set(np.unique(rasterise_objects(objects, 8, width=10, height=10))) == {0, 2}
    drawn = rasterise(objects, 8, ["a", "b"], width=10, height=10)
    assert (drawn == rasterise(parse([left]), 8, ["a", "b"], width=10, height=10)).all()


def test_refusals():
    with pytest.raises(ValueError, match="no crop"):
        crop_polygons(scene(), 0, 10, 8)
    with pytest.raises(AnnotationError, match="at most 254"):
        categories([scene(*((f"{i:03}", [[0, 0]] * 3) for i in range(255)))])
