import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captioners import confusions
from pipeline.captioners.annotations import AnnotationsCaptioner, AnnotationsConfig
from pipeline.captioners.claims import claims, falsify, holds
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.scene_graph import SceneGraph, Thing, parse, sparser
from pipeline.captioners.wording import sentence
from pipeline.settings import ConfigError, build
from pipeline.sources.scenes.config import ScenesConfig
from pipeline.sources.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES
from pipeline.sources.scenes.world import scene

FORMS = {"object", "attribute", "relation", "position", "background", "count", "summary"}
WORLD = ScenesConfig(train=100, test=0)

words = st.sampled_from(["dog", "cat", "car", "person", "cup", "star", "mountain goat"])
attributes = st.lists(st.sampled_from(["red", "small", "old", "fluffy"]), max_size=2, unique=True)
boxes = st.none() | st.just((0.1, 0.1, 0.3, 0.3)) | st.just((0.6, 0.4, 0.9, 0.9))
things = st.builds(lambda c, a, b: Thing(c, tuple(a), b), words, attributes, boxes)


@st.composite
def graphs(draw: st.DrawFn) -> SceneGraph:
    found = draw(st.lists(things, min_size=1, max_size=6))
    numbers = st.integers(0, len(found) - 1)
    pairs = st.tuples(numbers, st.sampled_from(["left of", "behind", "riding"]), numbers)
    relations = draw(st.lists(pairs.filter(lambda r: r[0] != r[2]), max_size=4))
    background = draw(st.sampled_from([None, "street", "some odd place"]))
    return SceneGraph(tuple(found), tuple(relations), background)


def caption(
    annotations: str | None, uid: str = "u", max_captions: int = 8, **rates: float
) -> CaptionResult:
    config = AnnotationsConfig(max_captions=max_captions, **rates)
    (result,) = AnnotationsCaptioner(config).caption([CaptionRequest(uid, b"", annotations)])
    return result


@given(graphs(), st.integers(0, 1000))
def test_claims_are_true_and_falsified_claims_false(graph: SceneGraph, seed: int) -> None:
    draw = random.Random(seed)
    for claim in claims(graph, draw):
        assert holds(claim, graph), claim
        assert not holds(falsify(claim, graph, draw), graph), claim


@given(st.integers(0, 99))
def test_scene_gets_distinct_english_sentences_of_known_forms(index: int) -> None:
    result = caption(scene(WORLD, "train", index).annotations(), uid=str(index))
    texts = [text for text, _ in result.captions]
    assert result.error is None
    assert 4 <= len(texts) <= 8
    assert len(set(texts)) == len(texts)
    assert {form for _, form in result.captions} <= FORMS
    for text in texts:
        assert re.fullmatch(r"[A-Z].*\.", text), text
        assert "  " not in text
        assert not re.search(r"\ba [aeio]|\ban [^aeiou]", text), text


def test_same_seed_and_uid_give_the_same_captions_whatever_the_batch() -> None:
    requests = [
        CaptionRequest(f"u{n}", b"", scene(WORLD, "train", n).annotations()) for n in range(20)
    ]
    captioner = AnnotationsCaptioner(AnnotationsConfig(error_rate=0.5))
    together = captioner.caption(requests)
    assert together[::-1] == [captioner.caption([r])[0] for r in requests[::-1]]
    other_seed = AnnotationsCaptioner(AnnotationsConfig(error_rate=0.5, seed=1))
    assert other_seed.caption(requests) != together


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_share_of_wrong_sentences_is_the_error_rate(rate: float) -> None:
    wrong = total = 0
    for index in range(100):
        graph = scene(WORLD, "train", index).annotations()
        right = {text for text, _ in caption(graph, uid=str(index), max_captions=64).captions}
        said = caption(graph, uid=str(index), max_captions=64, error_rate=rate).captions
        wrong += sum(_stripped(text) not in set(map(_stripped, right)) for text, _ in said)
        total += len(said)
    assert wrong / total == pytest.approx(rate, abs=0.05)


def _stripped(text: str) -> str:
    """Only the content of a sentence: its form may change together with its truth."""
    noise = (
        r"\b(a|an|the|there|is|are|image|picture|shows|can|be|seen|visible|in|total|of|contains)\b"
    )
    return " ".join(re.sub(noise, "", text.lower().rstrip(".")).split())


def test_class_names_and_boxes_are_enough() -> None:
    annotations = json.dumps(
        {
            "objects": [
                {"category": "person", "box": [0.0, 0.1, 0.2, 0.9]},
                {"category": "person"},
                {"category": "umbrella", "box": [0.7, 0.2, 0.9, 0.8]},
            ]
        }
    )
    result = caption(annotations, max_captions=64)
    texts = {text for text, _ in result.captions}
    assert any("two people" in text.lower() for text in texts)
    assert any(re.search(r"person( is)? to the left of an umbrella", text) for text in texts)
    assert any(text == "An umbrella is on the right side of the picture." for text in texts)
    assert not any(form in ("background", "attribute") for _, form in result.captions)


def test_a_plain_list_of_class_names_is_enough() -> None:
    texts = {
        text for text, _ in caption('["dog", "dog", " traffic  light "]', max_captions=64).captions
    }
    assert any("two dogs" in text.lower() for text in texts)
    assert any("a traffic light" in text.lower() for text in texts)
    assert parse('["dog"]') == parse('{"objects": [{"category": "dog"}]}')


def test_boxes_as_coco_has_them() -> None:
    coco = {
        "width": 640,
        "height": 480,
        "annotations": [
            {"category_name": "dog", "bbox": [0, 120, 160, 240], "iscrowd": 0, "id": 1},
            {"name": "cat", "bbox": [480, 120, 160.4, 240]},
        ],
    }
    graph = parse(json.dumps(coco))
    assert [thing.box for thing in graph.things] == [(0, 0.25, 0.25, 0.75), (0.75, 0.25, 1, 0.75)]
    assert graph.relations == ((0, "left of", 1),)
    texts = " ".join(text for text, _ in caption(json.dumps(coco), max_captions=64).captions)
    assert "dog is on the left side of the picture" in texts
    # Pixels mean nothing without the image's size: the objects are told, not where they are.
    del coco["width"]
    assert [thing.box for thing in parse(json.dumps(coco)).things] == [None, None]


def test_scene_graphs_as_visual_genome_has_them() -> None:
    graph = parse(
        json.dumps(
            {
                "objects": [
                    {"names": ["man", "person"], "attributes": "tall", "x": 3, "y": 4},
                    {"names": ["horse"], "attributes": ["brown"]},
                ],
                "relationships": [{"subject": 0, "predicate": "riding", "object": 1}],
            }
        )
    )
    assert graph.things == (Thing("man", ("tall",)), Thing("horse", ("brown",)))
    assert graph.relations == ((0, "riding", 1),)


def test_relation_that_is_a_verb_reads_as_one() -> None:
    annotations = json.dumps(
        {
            "objects": [{"category": "man"}, {"category": "horse", "attributes": ["brown"]}],
            "relations": [[0, "riding", 1]],
        }
    )
    assert ("A man riding a brown horse.", "relation") in caption(annotations).captions


def test_fewer_captions_are_the_first_of_more() -> None:
    graph = scene(WORLD, "train", 3).annotations()
    assert caption(graph, max_captions=3).captions == caption(graph).captions[:3]


@pytest.mark.parametrize(
    "annotations",
    [
        "",
        "{",
        "3",
        "[3]",
        '["dog", ""]',
        '["\\ud83d"]',
        '{"objects": [{"names": []}]}',
        '{"objects": [{"category": "dog", "bbox": [0, 0, 50, 10]}], "width": 20, "height": 20}',
        '{"objects": [{"category": "dog", "bbox": [0, 0, 5, 1]}], "width": 0, "height": 20}',
        '{"objects": ["dog"], "relations": [{"subject": 0, "object": 1}]}',
        "{}",
        '{"objects": 3}',
        '{"objects": [3]}',
        '{"objects": [{"category": ""}]}',
        '{"objects": [{"category": "dog", "attributes": [1]}]}',
        '{"objects": [{"category": "dog", "box": [0, 0, 1]}]}',
        '{"objects": [{"category": "dog", "box": [0, 0, 40, 40]}]}',
        '{"objects": [{"category": "dog"}], "relations": [[0, "on", 1]]}',
        '{"objects": [{"category": "dog"}], "relations": [[0, "on"]]}',
        '{"objects": [], "background": 7}',
    ],
)
def test_malformed_annotations_are_an_error_of_that_image_alone(annotations: str) -> None:
    good = scene(WORLD, "train", 0).annotations()
    requests = [CaptionRequest("a", b"", annotations), CaptionRequest("b", b"", good)]
    bad, fine = AnnotationsCaptioner(AnnotationsConfig()).caption(requests)
    assert bad == CaptionResult([], "bad_annotations")
    assert fine.error is None and fine.captions


def test_what_no_text_can_hold_is_left_out_of_words() -> None:
    captions = caption('["\\ud83d dog \\u0000"]').captions
    said = " ".join(text for text, _ in captions)
    assert "dog" in said and said.isprintable()


@pytest.mark.parametrize("annotations", [None, "[]", '{"background": null, "objects": []}'])
def test_nothing_to_tell_is_no_annotations(annotations: str | None) -> None:
    assert caption(annotations) == CaptionResult([], "no_annotations")


@given(st.text() | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
@settings(max_examples=50)
def test_arbitrary_text_never_raises(annotations: str) -> None:
    assert caption(annotations).error in ("bad_annotations", "no_annotations")


@given(graphs(), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1))
def test_what_goes_unsaid_at_one_rate_goes_unsaid_at_every_higher_one(
    graph: SceneGraph, seed: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    more, fewer = (sparser(graph, rate, random.Random(seed)) for rate in (low, high))
    for whole, some, least in zip(graph.things, more.things, fewer.things, strict=True):
        assert set(least.attributes) <= set(some.attributes) <= set(whole.attributes)
        assert replace(least, attributes=whole.attributes) == whole
    assert (fewer.relations, fewer.background) == (graph.relations, graph.background)
    assert sparser(graph, 0.0, random.Random(seed)) == graph
    assert not any(t.attributes for t in sparser(graph, 1.0, random.Random(seed)).things)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_share_of_attributes_that_no_caption_names_is_the_omission_rate(rate: float) -> None:
    said = total = 0
    for index in range(300):
        found = scene(WORLD, "train", index)
        told = caption(found.annotations(), str(index), 64, omission_rate=rate).captions
        assert {form for _, form in told} >= {"object", "background", "count", "summary"}
        named = set(re.findall(r"\w+", " ".join(text for text, _ in told)))
        own = {attribute for thing in found.objects for attribute in thing.attributes}
        said, total = said + len(own & named), total + len(own)
        truth = parse(found.annotations())
        assert all(
            holds(c, truth)
            for c in claims(sparser(truth, rate, random.Random(0)), random.Random(1))
        )
    # An attribute that two objects of an image share is told if either tells it.
    assert said / total == pytest.approx(1 - rate, abs=0.06)


def test_error_rate_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="error_rate"):
        build(AnnotationsConfig, {"error_rate": 1.5})


def test_words_of_the_embedded_world_are_confused_with_one_another() -> None:
    assert all(set(confusions.wrong_category(s)) == set(SHAPES) - {s} for s in SHAPES)
    assert all(set(confusions.wrong_attribute(c)) >= set(COLOURS) - {c} for c in COLOURS)
    assert all(b not in confusions.wrong_background(b) for b in BACKGROUNDS)
    assert set(confusions.wrong_background("unknown")) >= set(BACKGROUNDS)
    marked = (set(SIZES) | set(TEXTURES)) - {"medium", "plain"}
    assert all(set(confusions.wrong_attribute(a)) <= marked for a in marked)


def test_articles_follow_the_sound() -> None:
    annotations = json.dumps({"objects": [{"category": "unicorn"}, {"category": "apple"}]})
    texts = " ".join(text for text, _ in caption(annotations, max_captions=64).captions).lower()
    assert "a unicorn" in texts and "an apple" in texts
    graph = parse(annotations)
    assert all(sentence(c, random.Random(0)) for c in claims(graph, random.Random(0)))
