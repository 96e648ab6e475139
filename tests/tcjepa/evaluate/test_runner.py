"""A whole evaluation of tiny encoders on tiny pictures."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from tcjepa.data.augment import centre_crop
from tcjepa.evaluate.classification import FOLDER_LABEL
from tcjepa.evaluate.config import EvaluateConfig, SegmentationConfig, SweepConfig
from tcjepa.evaluate.report import format_table, measures
from tcjepa.evaluate.runner import evaluate

CPU = torch.device("cpu")
SWEEP = SweepConfig(learning_rates=[1e-2, 1e-1], weight_decays=[0.0], epochs=6, batch=16)
CONFIG = EvaluateConfig(
    labels=["colour", "side"],
    image_size=32,
    seeds=2,
    linear=SWEEP,
    segmentation=SegmentationConfig(sweep=SWEEP),
)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours(nn.Module):
    """Patch means, so colours are linearly separable and positions are lost in the pool."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


def pictures(count: int, seed: int, annotate: bool = True):
    """A coloured box on one side of a dark image, in batches of 20."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, 20):
        images, records = [], []
        for _ in range(start, min(start + 20, count)):
            name, side = rng.choice(list(COLOURS)), int(rng.integers(2))
            width, height = (int(v) for v in rng.integers(40, 60, 2))
            box = [0.5 * side, 0.2, 0.5 + 0.5 * side, 0.8]
            pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
            rows = slice(round(0.2 * height), round(0.8 * height))
            columns = slice(round(box[0] * width), round(box[2] * width))
            pixels[rows, columns] = COLOURS[name]
            record = {"colour": str(name), "side": side, "width": width, "height": height}
            if annotate:
                objects = [{"category": str(name), "box": box}]
                record["annotations"] = json.dumps({"objects": objects})
            images.append(torch.from_numpy(centre_crop(pixels, 32).copy()))
            records.append(record)
        yield torch.stack(images), records


def test_everything_at_once():
    found, tallies = evaluate(Colours(), pictures(120, 0), pictures(60, 1), CONFIG, CPU)
    assert (found.train_images, found.test_images) == (120, 60)
    assert found.linear["colour"].accuracy.value > 0.95
    assert found.knn["colour"].value > 0.95
    assert found.linear["side"].accuracy.value < 0.75  # pooling forgets where
    assert found.segmentation is not None and found.segmentation.miou.value > 0.6
    assert list(found.segmentation.per_class) == ["background", "blue", "green", "red"]
    assert found.spectrum is not None and 1 <= found.spectrum.effective_rank <= 3
    assert found.spectrum.lidar is not None and 1 <= found.spectrum.lidar <= 3
    assert list(found.few_shot) == [
        f"{label} {share}%" for label in CONFIG.labels for share in (1, 10)
    ]
    assert found.few_shot["colour 10%"].accuracy.value > 0.9
    assert any("few-shot colour 1%: two images of each class" in note for note in found.notes)
    assert "linear colour" in format_table({"colours": found})
    assert set(tallies) == set(measures(found))
    for name, measure in measures(found).items():
        assert len(tallies[name]) == 60
        assert tallies[name].value == pytest.approx(measure.value, abs=1e-6)
    again, _ = evaluate(Colours(), pictures(120, 0), pictures(60, 1), CONFIG, CPU)
    assert again == found


def test_lidar_is_of_the_tested_images_whatever_the_batch():
    def batches(size):
        images = torch.cat([images for images, _ in pictures(60, 1)])
        records = [record for _, records in pictures(60, 1) for record in records]
        for start in range(0, 60, size):
            yield images[start : start + size], records[start : start + size]

    config = CONFIG.model_copy(update={"tasks": ["spectrum"], "max_test": 8})
    found = [evaluate(Colours(), pictures(40, 0), batches(n), config, CPU)[0] for n in (4, 20)]
    assert [one.test_images for one in found] == [8, 8]
    assert found[0].spectrum == found[1].spectrum


def test_class_numbers_that_training_lacks_are_ignored():
    """Numbers of a label map need not be consecutive, nor all of them in a part of it."""

    def masked(batches, numbers):
        for images, records in batches:
            for place, record in enumerate(records):
                del record["annotations"]
                record["mask"] = np.zeros((32, 32), np.uint8)
                record["mask"][:16] = numbers[place % len(numbers)]
            yield images, records

    config = CONFIG.model_copy(update={"tasks": ["segmentation"]})
    train = masked(pictures(40, 0), [1, 5])
    found, _ = evaluate(Colours(), train, masked(pictures(40, 1), [1, 3, 5, 7]), config, CPU)
    assert found.segmentation is not None
    scores = found.segmentation.per_class
    assert {name for name, score in scores.items() if score is not None} == {
        "background", "1", "5"
    }  # fmt: skip
    assert any("20 test images have pixels that are ignored" in note for note in found.notes)


def test_folder_classes_few_images_and_missing_annotations():
    def folder(count, seed):
        for images, records in pictures(count, seed, annotate=False):
            yield images, [{FOLDER_LABEL: r["colour"]} for r in records]

    config = CONFIG.model_copy(update={"labels": []})
    found, _ = evaluate(Colours(), folder(15, 0), folder(10, 1), config, CPU)
    assert set(found.linear) == {FOLDER_LABEL}
    assert found.segmentation is None
    assert any("segmentation: skipped" in note for note in found.notes)
    assert any("k is 15" in note for note in found.notes)


def test_gaps_in_labels_are_said():
    def only(batches, keep, drop):
        for images, records in batches:
            chosen = [i for i, r in enumerate(records) if r["colour"] in keep]
            for i in chosen[:drop]:
                records[i]["colour"] = None
            yield images[chosen], [records[i] for i in chosen]

    def keyed(batches):
        for batch, (images, records) in enumerate(batches):
            yield images, [{**r, "uid": f"{batch}-{i}"} for i, r in enumerate(records)]

    config = CONFIG.model_copy(update={"labels": ["colour"], "max_test": 30})
    found, tallies = evaluate(
        Colours(),
        only(pictures(60, 0), {"red", "blue"}, 2),
        keyed(only(pictures(60, 1), COLOURS, 1)),
        config,
        CPU,
    )
    assert found.test_images == 30
    text = "\n".join(found.notes)
    assert "6 training images without the label" in text
    assert "class not seen in training: all wrong" in text
    assert "of a category not seen in training" in text
    assert found.linear["colour"].accuracy.value < 0.95
    named = tallies["kNN colour"]
    assert named.images == tuple(f"{b}-{i}" for b, n in ((0, 20), (1, 10)) for i in range(1, n))
    assert named.value == pytest.approx(found.knn["colour"].value, abs=1e-6)


def annotated(batches, change):
    """Give image n of the batches the annotations `change(n, objects)`; None takes them away."""
    number = 0
    for images, records in batches:
        for record in records:
            record["uid"] = f"u{number}"
            objects = json.loads(record["annotations"])["objects"]
            record["annotations"] = change(number, objects)
            number += 1
        yield images, records


ONLY = CONFIG.model_copy(update={"tasks": ["knn", "segmentation"], "labels": ["colour"]})


def segmented(change, change_test=None):
    return evaluate(
        Colours(),
        annotated(pictures(40, 0), change),
        annotated(pictures(40, 1), change_test or change),
        ONLY,
        CPU,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n, o: "{" if n == 3 else o, "annotations of sample u3 are malformed"),
        (lambda n, o: [{"category": None}] if n == 5 else o, "u5 are malformed: expected a class"),
        (lambda n, o: [{**o[0], "category": f"{n}-{k}"} for k in range(9)], "at most 254"),
        (lambda n, o: o if n == 7 else None, "two training images and two test images"),
        (lambda n, o: [], "the 40 training images show no object"),
        (lambda n, o: ["red", "blue"], "the 40 training images show no object"),
        (lambda n, o: [{"category": "red", "bbox": [0, 0, 9, 9]}], "training images show no obj"),
    ],
)
def test_annotations_that_cannot_serve_cost_segmentation_alone(change, reason):
    found, tallies = segmented(change)
    assert found.segmentation is None and "mIoU" not in tallies
    assert found.knn["colour"].value > 0.95
    assert any(n.startswith("segmentation: skipped, ") and reason in n for n in found.notes)


def test_test_images_without_an_object_are_no_perfect_score():
    for nothing in ([], [{"category": "new", "box": [0, 0, 1, 1]}]):
        found, _ = segmented(lambda n, o: o, lambda n, o, own=nothing: own)
        assert found.segmentation is None
        assert any("skipped, the 40 test images show no object" in note for note in found.notes)


def test_a_sample_without_its_size_is_named():
    def unsized(batches):
        for images, records in batches:
            del records[4]["width"]
            yield images, records

    found, _ = evaluate(
        Colours(), unsized(annotated(pictures(20, 0), lambda n, o: o)), pictures(20, 1), ONLY, CPU
    )
    assert found.segmentation is None and found.knn
    assert any("skipped, sample u4 has annotations, which need" in note for note in found.notes)


def test_other_forms_of_annotations_are_segmented_alike():
    def coco(_, objects):
        left, top, right, bottom = objects[0]["box"]
        box = [100 * left, 200 * top, 100 * (right - left), 200 * (bottom - top)]
        own = [{"category_name": objects[0]["category"], "bbox": box}]
        return json.dumps({"width": 100, "height": 200, "annotations": own})

    ours, tallies = segmented(lambda n, o: json.dumps({"objects": o}))
    assert ours.segmentation is not None and ours.segmentation.miou.value > 0.6
    for change in (coco, lambda n, o: o):
        theirs, others = segmented(change)
        assert theirs.segmentation == ours.segmentation
        assert (others["mIoU"].sums == tallies["mIoU"].sums).all()


def test_objects_without_a_place_are_not_drawn_and_noted():
    plain, _ = segmented(lambda n, o: o)
    more, _ = segmented(lambda n, o: [*o, "sky"] if n < 4 else o)
    assert more.segmentation == plain.segmentation
    said = "segmentation: 8 of 88 annotated objects have neither box nor polygon and are not drawn"
    assert any(note.startswith(said) and '"bbox" in pixels with' in note for note in more.notes)
    # Where none of an image's objects has a place, its background has none either.
    some, tallies = segmented(lambda n, o: ["red"] if n % 2 else o)
    assert some.segmentation is not None
    sums = tallies["mIoU"].sums
    assert not sums[1::2].any() and sums[::2].any(axis=(1, 2)).all()
    assert any("20 test images have pixels that are ignored" in note for note in some.notes)


def test_one_class_is_evaluated_and_said_to_say_nothing():
    def one(batches):
        for images, records in batches:
            yield images, [{**record, "colour": "any"} for record in records]

    config = CONFIG.model_copy(
        update={"labels": ["colour"], "tasks": ["linear", "few_shot", "knn", "segmentation"]}
    )
    found, _ = evaluate(Colours(), one(pictures(40, 0)), one(pictures(20, 1)), config, CPU)
    assert found.linear["colour"].accuracy.value == found.knn["colour"].value == 1
    assert found.few_shot["colour 10%"].accuracy.value == 1
    assert any("colour: training images have one class only" in note for note in found.notes)
    assert not any("linear colour: the best setting" in note for note in found.notes)


def test_tasks_choose_and_labels_are_checked():
    config = CONFIG.model_copy(update={"tasks": ["spectrum"], "labels": []})
    found, _ = evaluate(Colours(), pictures(20, 0), pictures(20, 1), config, CPU)
    assert not found.linear and not found.knn and found.segmentation is None
    wrong = CONFIG.model_copy(update={"labels": ["shape"]})
    with pytest.raises(ValueError, match="'shape': no record"):
        evaluate(Colours(), pictures(20, 0), pictures(20, 1), wrong, CPU)
