"""Extraction: order, limits, pooling, the encoder's mode, labels."""

import re

import pytest
import torch
from torch import nn

from tcjepa.evaluate.features import LabelError, extract, label_classes, label_numbers
from tcjepa.model.jepa import normalise

CPU = torch.device("cpu")


class Mean(nn.Module):
    """Four tokens: the mean of each quarter's three channels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)


def batches(sizes=(3, 2)):
    number = 0
    for size in sizes:
        values = torch.arange(number, number + size).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        records = [{"number": n, "wanted": n % 2 == 1} for n in range(number, number + size)]
        yield values.to(torch.uint8), records
        number += size


def test_order_pooling_and_limits():
    whole = extract(Mean(), batches(), CPU, prepare=lambda x: x.float())
    assert whole.pooled.tolist() == [[n] * 3 for n in range(5)]
    assert [r["number"] for r in whole.records] == list(range(5))
    assert whole.patches is None
    some = extract(Mean(), batches(), CPU, prepare=lambda x: x.float(), max_images=4)
    assert len(some) == 4 == len(some.records)


def test_patches_are_kept_for_the_images_that_are_wanted():
    kept = extract(
        Mean(),
        batches((2, 2, 4)),
        CPU,
        prepare=lambda x: x.float(),
        keep_patches=lambda record: record["wanted"],
        max_patches=3,
    )
    assert kept.patch_rows is not None and kept.patch_rows.tolist() == [1, 3, 5]
    assert kept.patches is not None and kept.patches.shape == (3, 4, 3)
    assert kept.patches[:, 0, 0].tolist() == [1, 3, 5]


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_even_after_an_error(training):
    encoder = Mean().train(training)
    extract(encoder, batches(), CPU)
    assert encoder.training is training
    with pytest.raises(ValueError, match="no images"):
        extract(encoder, [], CPU)
    assert encoder.training is training


def test_default_preparation_is_the_trainers():
    default = extract(Mean(), batches(), CPU)
    assert torch.equal(default.pooled, extract(Mean(), batches(), CPU, prepare=normalise).pooled)


def test_progress_counts_up_to_the_limit(capsys):
    extract(Mean(), batches(), CPU, max_images=4, total=5, label="probe")
    assert "probe: 4/4 images" in capsys.readouterr().err


def test_refusals():
    class Pooled(Mean):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).mean(dim=1)

    class Diverged(Mean):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) / 0

    with pytest.raises(ValueError, match="patch tokens"):
        extract(Pooled(), batches(), CPU)
    with pytest.raises(ValueError, match="diverged"):
        extract(Diverged(), batches(), CPU)
    with pytest.raises(ValueError, match="3 images and 0 records"):
        extract(Mean(), [(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), [])], CPU)


def test_labels_are_numbered_by_the_training_set():
    records = [{"a": "dog"}, {"a": None}, {"a": "cat"}, {}]
    classes = label_classes(records, "a")
    assert classes == ["cat", "dog"]
    assert label_numbers([*records, {"a": "emu"}], "a", classes).tolist() == [1, -2, 0, -2, -1]
    assert label_classes([{"n": 10}, {"n": 9}], "n") == ["9", "10"]
    with pytest.raises(ValueError, match="no record has it"):
        label_classes(records, "b")


@pytest.mark.parametrize(
    ("value", "kind"), [(0.5, "float"), (["dog", "cat"], "list"), ({"dog": 1}, "dict")]
)
def test_what_is_no_class_is_named_in_training_and_test_records(value, kind):
    said = f"label 'a' has a value of type {kind}, {value!r}; labels must be text, integers"
    with pytest.raises(LabelError, match=re.escape(said)):
        label_classes([{"a": "dog"}, {"a": value}], "a")
    with pytest.raises(LabelError, match=re.escape(said)):
        label_numbers([{"a": "dog"}, {"a": value}], "a", ["dog"])
