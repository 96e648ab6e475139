"""JSON, table and comparison."""

import json
import math
from dataclasses import replace

import pytest

from tcjepa.evaluate.agreement import AgreementResult
from tcjepa.evaluate.grounding import GroundingResult, Reading
from tcjepa.evaluate.linear import ProbeResult
from tcjepa.evaluate.measure import Measure
from tcjepa.evaluate.report import (
    EvaluationResult,
    SpectrumResult,
    comparison,
    format_table,
)
from tcjepa.evaluate.segmentation import SegmentationResult
from tcjepa.evaluate.sweep import Setting


def result(accuracy: float, error: float = 0.03) -> EvaluationResult:
    measure = Measure(accuracy, 0.01, error, (accuracy, accuracy))
    chosen = (Setting(0.1, 0.0),)
    return EvaluationResult(
        train_images=10,
        test_images=5,
        linear={"shape": ProbeResult(measure, 0.2, 4, chosen, ())},
        knn={"shape": Measure.accuracy([0.5], 5)},
        segmentation=SegmentationResult(measure, 0.9, {"a": 0.5, "b": None}, chosen, (), 10, 5),
        spectrum=SpectrumResult(12.34, 0.8, 192),
        notes=("a caveat",),
    )


def agreement() -> AgreementResult:
    errors = [Measure(value, None, 0.01, (value,)) for value in (4.0, 4.0412, 4.1, 0.0412)]
    return AgreementResult(*errors, images=5)


def grounding() -> GroundingResult:
    share = Measure(0.31, None, 0.02, (0.31,))
    return GroundingResult(
        reading="target, cosine, last layer",
        threshold=0.5,
        pointing=share,
        chance=Measure(0.1, None, 0.0, (0.1,)),
        miou=share,
        other=None,
        specificity=None,
        per_category={"star": 0.31},
        readings={"target, cosine, last layer": Reading(0.31, 0.31, 0.5, None, 0.3, 0.3)},
        images=5,
        words=9,
        validation_words=8,
        left_out={"object outside the crop, or hidden": 1},
    )


def test_json_comes_back_unchanged():
    full = replace(result(0.7), agreement=agreement(), grounding=grounding())
    assert EvaluationResult.from_json(full.to_json()) == full
    bare = EvaluationResult(1, 1, {}, {}, None, None)
    assert EvaluationResult.from_json(bare.to_json()) == bare
    with pytest.raises(ValueError, match="not an evaluation result"):
        EvaluationResult.from_json("{}")


def test_results_of_versions_without_the_text_tasks_are_read():
    old = json.loads(result(0.7).to_json())
    del old["agreement"], old["grounding"]
    old["text_gain"] = 0.04
    found = EvaluationResult.from_json(json.dumps(old))
    assert found == result(0.7) and found.text_gain is None


def test_table_has_a_row_per_encoder_and_dashes_where_undefined():
    bare = replace(result(0.4), segmentation=None, notes=())
    both = replace(result(0.7), agreement=agreement(), grounding=grounding())
    text = format_table({"TC-JEPA": both, "random weights": bare})
    head, rule, first, second, blank, note = text.splitlines()
    assert head.split("  ")[0] == "encoder" and set(rule) <= {"-", " "} and not blank
    for part in ("70.0 ± 3.0", "12.3 of 192", "4.0000 ± 0.0100", "0.0412 ± 0.0100", "31.0 ± 2.0"):
        assert part in first
    assert second.count("—") == 6
    assert len(first) == len(head)
    assert note == "TC-JEPA: a caveat"


def test_comparison_counts_standard_errors_of_the_difference():
    linear, _, knn = comparison(result(0.7), result(0.4))
    assert linear.measure == "linear shape"
    assert linear.difference == pytest.approx(0.3)
    assert linear.standard_errors == pytest.approx(0.3 / math.hypot(0.03, 0.03))
    assert str(linear) == "linear shape: 30.0 points ahead, 7.1 standard errors"
    assert knn.standard_errors == 0
    assert "behind" in str(comparison(result(0.4), result(0.7))[0])


def test_comparison_without_error_or_common_measures():
    sure = replace(result(0.7, 0.0), linear={}, knn={})
    assert comparison(sure, replace(sure, segmentation=None)) == []
