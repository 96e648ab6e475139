"""Which words name which object, and where that object is in the evaluation crop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.evaluate.mentions import find_mentions, object_patches
from tcjepa.text import HashedEncoder, TextConfig, open_text_encoder
from tests.tcjepa.evaluate.captioned import GRID, WORDS, box, images_of, noun

SPANS = HashedEncoder(TextConfig(width=WORDS, max_words=8)).spans_of
STAR = box("star", 0.3, 0.3, 0.7, 0.7)


def named(caption, *objects, size=(256, 256)):
    """Return the mentions in one caption of an image, and what was left out."""
    mentions = find_mentions(images_of([[caption]], [objects], size), SPANS, GRID)
    return mentions.found, dict(mentions.left_out)


@pytest.mark.parametrize(
    ("caption", "pieces"),
    [
        ("a red star", [(2,)]),
        ("A STAR above a star", [(1,), (4,)]),  # each occurrence is a word of its own
        ("red stars", []),  # a plural names no single object
        ("a starfish, a mega star!", [(4,)]),
        ("star_1.jpg", [(0,)]),
        ("the star's tip", [(1,)]),
        ("a ring", []),
        (noun("a star-shaped ring", "ring"), []),
        (noun("a star-shaped ring by a star", "ring"), []),  # no noun, says the pipeline
        (noun("by a star, a star", "star"), [(2,)]),
        ("one two three four five six seven star", [(7,)]),
    ],
)
def test_names_are_whole_singular_nouns(caption, pieces):
    found, _ = named(caption, STAR)
    assert [mention.pieces for mention in found] == pieces
    assert all(mention.category == "star" for mention in found)


def test_names_of_several_words_and_names_within_names():
    dog, hot_dog = box("dog", 0.2, 0.2, 0.5, 0.5), box("hot dog", 0.6, 0.6, 0.9, 0.9)
    found, _ = named("a hot-dog for the dog", dog, hot_dog)
    assert [(mention.category, mention.pieces) for mention in found] == [
        ("hot dog", (1, 2)),
        ("dog", (5,)),
    ]
    # In another image of the set, "hot dog" is known to be something else than a dog.
    pair = images_of([["a hot dog"], ["a hot dog"]], [[dog], [hot_dog]])
    assert [mention.image for mention in find_mentions(pair, SPANS, GRID).found] == [1]


def test_words_whose_referent_is_unknown_unseen_or_unread_are_counted():
    far = box("ring", 0.0, 0.3, 0.05, 0.7)
    assert named("a star", STAR, box("star", 0.0, 0.0, 0.1, 0.1)) == (
        [],
        {"one of several objects of the category": 1},
    )
    # Of an image twice as wide as high, the crop is the middle: its left edge is outside.
    assert named("a ring", far, size=(512, 256)) == ([], {"object outside the crop, or hidden": 1})
    assert named("a ring", far, size=(256, 512))[1] == {"object outside the crop, or hidden": 1}
    # What is painted later covers it.
    assert named("a star", STAR, box("ring", 0.2, 0.2, 0.8, 0.8))[1] == {
        "object outside the crop, or hidden": 1
    }
    assert named("1 2 3 4 5 6 7 8 star", STAR) == ([], {"beyond text.max_words": 1})


def test_objects_without_a_place_are_counted_and_hide_no_other():
    assert named("a star by a ring", STAR, "ring")[1] == {"object without box or polygon": 1}
    found, _ = named("a star by a ring", "ring", STAR)
    assert [mention.category for mention in found] == ["star"]
    assert named("a star", STAR, "star")[1] == {"one of several objects of the category": 1}
    # Nothing is drawn, so the image's size is not asked for.
    unsized = images_of([["a star"]], [["star"]])
    del unsized.records[0]["width"]
    assert not find_mentions(unsized, SPANS, GRID).found


def test_annotations_are_read_as_the_captioner_reads_them():
    coco = {
        "width": 100,
        "height": 100,
        "annotations": [{"category_name": "star", "bbox": [30, 30, 40, 40]}],
    }
    test = images_of([["a star"]] * 2, [[STAR], [STAR]])
    test.records[1]["annotations"] = json.dumps(coco)
    ours, theirs = find_mentions(test, SPANS, GRID).found
    assert (ours.category, ours.pieces) == (theirs.category, theirs.pieces)
    assert (ours.patches == theirs.patches).all()


@pytest.mark.parametrize("annotations", ["{", "3", '[{"box": [0, 0, 1, 1]}]', '[{"name": null}]'])
def test_malformed_annotations_are_an_error_that_names_the_sample(annotations):
    test = images_of([["a star"]] * 2, [[STAR], [STAR]])
    test.records[1]["annotations"] = annotations
    with pytest.raises(ValueError, match=f"the annotations of sample {test.uids[1]} are malformed"):
        find_mentions(test, SPANS, GRID)
    unsized = images_of([["a star"]], [[STAR]])
    del unsized.records[0]["width"]
    with pytest.raises(ValueError, match=f"sample {unsized.uids[0]} has annotations, which need"):
        find_mentions(unsized, SPANS, GRID)


def test_images_without_annotations_have_no_mentions():
    mentions = find_mentions(images_of([["a star"], []], [None, [STAR]]), SPANS, GRID)
    assert (mentions.found, mentions.annotated) == ([], 1)
    nothing = find_mentions(images_of([["a star"]], [[]]), SPANS, GRID)
    assert (nothing.found, nothing.annotated) == ([], 1)


def test_patches_lie_where_the_crop_shows_the_object():
    # 256 x 512: resized to 37 x 74, of which rows 18 to 50 and columns 2 to 34 are the crop.
    found, _ = named("a star", box("star", 0.0, 0.5, 1.0, 1.0), size=(256, 512))
    # Below half height of the image: 37 - 18 = 19 pixels down, so the third row is covered by 5/8.
    wanted = np.zeros((4, 4), bool)
    wanted[2:] = True
    assert found[0].patches.reshape(4, 4).tolist() == wanted.tolist()


masks = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).choice(
        np.arange(3, dtype=np.int16), (8, 8), p=np.random.default_rng(seed + 1).dirichlet([1] * 3)
    )
)


@given(masks)
def test_object_patches_against_counting_pixels(mask):
    found = object_patches(mask, 1, (4, 4))
    covered = {}
    for row in range(4):
        for column in range(4):
            cell = mask[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            covered[4 * row + column] = sum(int(value == 1) for value in cell.ravel()) / 4
    if sum(covered.values()) < 0.5:
        assert found is None
        return
    half = {patch for patch, share in covered.items() if share >= 0.5}
    most = {patch for patch, share in covered.items() if share == max(covered.values())}
    assert found is not None and set(np.flatnonzero(found)) == (half or most)


def test_a_grid_that_does_not_divide_the_crop_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        object_patches(np.zeros((8, 8), np.int16), 1, (3, 3))


def test_word_pieces_of_a_real_tokenizer(tmp_path: Path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cres", "##cent", "traffic", "light", "##s"]
    tokenizer = Tokenizer(
        models.WordPiece(vocab={p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(tmp_path)  # fmt: skip
    sizes = BertConfig(
        vocab_size=len(pieces), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    BertModel(sizes).save_pretrained(tmp_path)
    objects = [box("crescent", 0.2, 0.2, 0.5, 0.5), box("traffic light", 0.6, 0.6, 0.9, 0.9)]
    test = images_of([["A Crescent, a traffic light"]], [objects])
    # [CLS] is dropped: a cres ##cent , a traffic light.
    found = {}
    for words in (7, 6):  # the second cuts "traffic light" in two
        encoder = open_text_encoder(TextConfig(encoder=str(tmp_path), max_words=words))
        mentions = find_mentions(test, encoder.spans_of, GRID)
        found[words] = [(mention.category, mention.pieces) for mention in mentions.found]
        assert sum(mentions.left_out.values()) == 7 - words
    assert found == {7: [("crescent", (1, 2)), ("traffic light", (5, 6))], 6: found[7][:1]}
