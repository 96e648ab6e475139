"""Annotations in every form that the pipeline's captioner reads, and against it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioners import scene_graph
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.world import scene
from tcjepa.evaluate.annotations import (
    AnnotatedObject,
    AnnotationError,
    objects_of,
    parse,
    size_of,
)

OBJECT = {"category": "dog", "box": [0.1, 0.2, 0.4, 0.5]}
COCO = {
    "width": 640,
    "height": 480,
    "annotations": [
        {"category_name": "dog", "bbox": [0, 120, 160, 240], "iscrowd": 0, "id": 1},
        {"name": "cat", "bbox": [480, 120, 160.4, 240]},
    ],
}
READ: dict[str, Any] = {
    "documented": {"background": "sea", "objects": [OBJECT], "relations": []},
    "class names": {"objects": ["dog", " traffic  light "]},
    "list of class names": ["dog", "dog"],
    "list of objects": [OBJECT, "cat"],
    "no object": {"objects": []},
    "empty list": [],
    "coco": COCO,
    "coco without size": {"annotations": COCO["annotations"]},
    "coco with half a size": {"annotations": COCO["annotations"], "height": 480, "width": None},
    "visual genome": {
        "objects": [{"names": ["man", "person"], "attributes": "tall", "x": 3, "y": 4}],
        "relationships": [],
    },
    "label": [{"label": "dog", "box": None}],
    "numbers as text": {"objects": [{"category": "dog", "box": ["0", "0.5", "1", "1.0"]}]},
    "empty boxes": {"objects": [{"category": "dog", "box": [0.5, 0.5, 0.5, 0.5]}]},
}
REFUSED: tuple[Any, ...] = (
    3, None, "dog", [3], ["dog", ""], {}, {"background": "sea"}, {"objects": 3}, {"objects": None},
    {"objects": "dog"}, {"objects": {"dog": 1}},
    [{}], [{"box": [0, 0, 1, 1]}], [{"category": None}], [{"category": None, "name": "dog"}],
    [{"category": ""}], [{"category": 7}], [{"names": []}], [["category"]], [None],
    [{"category": "dog", "box": [0, 0, 1]}], [{"category": "dog", "box": [0, 0, 40, 40]}],
    [{"category": "dog", "box": [0.5, 0, 0.4, 1]}], [{"category": "dog", "box": 3}],
    [{"category": "dog", "box": [float("nan"), 0, 1, 1]}], [{"category": "dog", "box": []}],
    [{"category": "dog", "box": [10**400, 0, 1, 1]}], [{"category": "dog", "box": [None] * 4}],
    {"objects": [{"category": "dog", "bbox": [0, 0, 50, 10]}], "width": 20, "height": 20},
    {"objects": [{"category": "dog", "bbox": [0, 0, 5, 1]}], "width": 0, "height": 20},
    {"objects": [{"category": "dog", "bbox": [0, 0, 5, 1]}], "width": "wide", "height": 20},
)  # fmt: skip


def boxes(objects: list[AnnotatedObject]) -> list[tuple[str, Any]]:
    """Return category and the box around its outline of each object."""
    return [
        (
            one.category,
            None if one.outline is None else (*one.outline.min(axis=0), *one.outline.max(axis=0)),
        )
        for one in objects
    ]


def told(text: str) -> list[tuple[str, Any]] | None:
    """Return the same of the pipeline's parser; None for what it refuses."""
    try:
        return [(thing.category, thing.box) for thing in scene_graph.parse(text).things]
    except ValueError:
        return None


def read(annotations: Any) -> list[tuple[str, Any]] | None:
    try:
        return boxes(parse(annotations))
    except ValueError:
        return None


@pytest.mark.parametrize("annotations", READ.values(), ids=READ.keys())
def test_what_the_captioner_reads_is_read_alike_as_text_and_parsed(annotations: Any) -> None:
    text = json.dumps(annotations)
    expected = told(text)
    assert expected is not None
    assert read(text) == read(annotations) == expected


@pytest.mark.parametrize("annotations", REFUSED, ids=repr)
def test_what_the_captioner_refuses_is_refused(annotations: Any) -> None:
    text = json.dumps(annotations)
    assert told(text) is None
    for given_as in (text, annotations):
        with pytest.raises(ValueError, match=r"."):
            parse(given_as)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    assert told(text) is None
    with pytest.raises(ValueError, match=r"."):
        parse(text)


numbers = st.sampled_from([-0.1, 0, 0.2, 0.5, 1, 1.005, 7, 20, True, "0.5", "x", None])
values = st.one_of(
    st.sampled_from(["dog", " hot  dog ", "", None, 7, ["man", "person"], [], [None]]),
    st.lists(numbers, min_size=3, max_size=5),
)
keys = ["category", "category_name", "label", "name", "names", "box", "bbox", "id"]
named = st.fixed_dictionaries(
    {"category": st.sampled_from(["dog", "cat"])},
    optional={
        "box": st.none() | st.lists(numbers, min_size=4, max_size=4),
        "bbox": st.none() | st.lists(numbers, min_size=4, max_size=4),
    },
)
items = st.one_of(named, st.dictionaries(st.sampled_from(keys), values), values)
objects = st.lists(items, max_size=3)
whole = objects | st.fixed_dictionaries(
    {}, optional={"objects": objects, "annotations": objects, "width": numbers, "height": numbers}
)


@given(whole)
def test_any_objects_are_read_or_refused_as_by_the_captioner(annotations: Any) -> None:
    assert read(json.dumps(annotations)) == told(json.dumps(annotations))


@pytest.mark.parametrize("index", range(5))
def test_the_worlds_annotations_are_read(index: int) -> None:
    text = scene(ScenesConfig(train=5, test=0), "train", index).annotations()
    found, expected = parse(text), told(text)
    assert expected is not None
    assert [one.category for one in found] == [category for category, _ in expected]
    assert all(one.outline is not None for one in found)


def test_a_polygon_goes_before_a_box_and_may_stand_over_the_edge() -> None:
    polygon = [[-0.1, 0.2], [0.4, 0.2], [0.25, 0.5]]
    (one,) = parse([{**OBJECT, "polygon": polygon}])
    assert one.outline is not None and one.outline.tolist() == polygon
    for empty in (None, []):
        (one,) = parse([{**OBJECT, "polygon": empty}])
        assert one.outline is not None and one.outline.max() == 0.5


@pytest.mark.parametrize(
    "polygon",
    [[[0, 0], [1, 1]], [0, 0, 1, 1, 0, 1], [[0, 0, 0]] * 3, [[0, 0], [1], [0, 1]], "abc",
     [[0, 0], [1, float("nan")], [0, 1]], [["x", 0]] * 3, {"a": 1}, 7],
    ids=repr,
)  # fmt: skip
def test_what_is_no_polygon_is_refused(polygon: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse([{**OBJECT, "polygon": polygon}])


def test_parts_that_are_not_measured_do_not_stop_the_objects() -> None:
    found = parse({"objects": [{**OBJECT, "attributes": [1]}], "relations": 7, "background": 3})
    assert [one.category for one in found] == ["dog"]


def test_errors_name_the_sample_and_say_what_is_wrong() -> None:
    assert objects_of({}, "a1") is None and objects_of({"annotations": None}, "a1") is None
    for text, problem in {
        '[{"box": [0, 0, 1, 1]}]': 'no "category" in {',
        '{"objects": "dog"}': "expected a list of objects, got 'dog'",
        '[{"category": null}]': "expected a class name, got None",
        '[{"category": "dog", "polygon": [[0, 1]]}]': "polygon [[0, 1]] is not three",
    }.items():
        said = re.escape(f"the annotations of sample a1 are malformed: {problem}")
        with pytest.raises(AnnotationError, match=said):
            objects_of({"annotations": text}, "a1")


def test_the_size_of_the_image_is_needed() -> None:
    assert size_of({"width": 40, "height": 30}, "a1") == (40, 30)
    for record in ({}, {"width": 40}, {"width": 0, "height": 30}, {"width": "40", "height": 30}):
        with pytest.raises(AnnotationError, match="sample a1 has annotations, which need"):
            size_of(record, "a1")


def test_outlines_of_boxes_are_their_corners() -> None:
    (one,) = parse([OBJECT])
    assert one.outline is not None
    np.testing.assert_array_equal(one.outline, [[0.1, 0.2], [0.4, 0.2], [0.4, 0.5], [0.1, 0.5]])
