"""Agreement and grounding of whole runs: what is shown, what is written, why a task is skipped."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from pipeline.schema import Caption
from tcjepa.cli import main
from tcjepa.config import TrainConfig, stored
from tcjepa.evaluate.agreement import GAIN, NONE, RIGHT, SWAPPED
from tcjepa.evaluate.config import EvaluateConfig
from tcjepa.evaluate.grounding import CHANCE, MIOU, POINTING
from tcjepa.evaluate.report import EvaluationResult
from tcjepa.evaluate.runner import evaluate
from tcjepa.evaluate.tally import TALLIES_FILE, from_bytes
from tcjepa.evaluate.text_path import with_text_path
from tcjepa.evaluation import captioned_images
from tcjepa.masks import MaskConfig
from tcjepa.text import HashedEncoder, TextConfig
from tests.tcjepa.evaluate.captioned import WORDS, box, images_of, tiny_model
from tests.tcjepa.shards import caption, write_shards
from tests.tcjepa.train.runs import tiny_config, write_config

CPU = torch.device("cpu")
COUNT = 60
COLOURS = {"star": "red", "ring": "blue"}


def objects_of(number: int) -> list[dict[str, Any]]:
    side = 0.5 * (number % 2)
    name = "star" if number % 4 < 2 else "ring"
    return [box(name, side + 0.1, 0.3, side + 0.4, 0.7)]


def draw(number: int) -> bytes:
    image = Image.new("RGB", (40, 40), (90, 90, 90))
    for item in objects_of(number):
        corners = [40 * edge for edge in item["box"]]
        ImageDraw.Draw(image).rectangle(corners, fill=COLOURS[item["category"]])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def captions_of(number: int) -> list[Caption]:
    if number % 10 == 9:
        return []
    name = objects_of(number)[0]["category"]
    texts = [f"a {name} here", f"the {COLOURS[name]} {name}", "a picture"]
    return [
        caption(text, source, quality)
        for text, source, quality in zip(texts, ("alt", "x:a", "x:b"), (0.9, 0.5, 0.1), strict=True)
    ]


def scenes(folder: Path) -> Path:
    """Write a config of a tiny run and annotated shards of 40 training and 20 test images."""
    config = write_config(folder, steps=4)
    write_shards(
        folder / "shards",
        COUNT,
        captions_of,
        size=(40, 40),
        image_format="png",
        encode=draw,
        split=lambda number: "test" if number % 3 == 0 else "train",
        meta=lambda number: {
            "annotations": json.dumps({"objects": objects_of(number)}),
            "parity": number % 2,
        },
    )
    return config


QUICK = (
    "evaluate.labels=[parity]",
    "evaluate.tasks=[knn,agreement,grounding]",
    "evaluate.batch=8",
    "train.evaluate_after=true",
)


def evaluated(folder: Path, *overrides: str) -> tuple[EvaluationResult, EvaluationResult]:
    assert main(["pretrain", str(scenes(folder)), *QUICK, *overrides]) == 0
    content = json.loads((folder / "run" / "evaluation.json").read_text())
    return tuple(
        EvaluationResult.from_json(json.dumps(content[name]))
        for name in ("trained", "random weights")
    )  # type: ignore[return-value]


def test_a_run_is_measured_and_its_images_are_tallied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, untrained = evaluated(tmp_path)
    said = capsys.readouterr().out
    for column in (POINTING, CHANCE, MIOU, "text gain", "prediction error"):
        assert column in said
    assert trained.agreement is not None and trained.grounding is not None
    assert untrained.agreement is not None and untrained.grounding is not None
    assert trained.agreement.images == 18  # two of twenty have no caption
    assert trained.text_gain == trained.agreement.gain.value
    assert trained.grounding.chance == untrained.grounding.chance
    assert trained.grounding.readings != untrained.grounding.readings
    tallies = from_bytes((tmp_path / "run" / TALLIES_FILE).read_bytes())
    for encoder in ("trained", "random weights"):
        for name in (RIGHT, SWAPPED, NONE, GAIN):
            assert len(tallies[f"{encoder}/{name}"]) == 18
        assert len(tallies[f"{encoder}/{POINTING}"]) == trained.grounding.images
    gain = tallies[f"trained/{GAIN}"]
    assert gain.value == pytest.approx(trained.text_gain, abs=1e-6)
    assert gain.images == tallies[f"random weights/{GAIN}"].images


def test_ijepa_and_images_without_captions_get_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, _ = evaluated(tmp_path, "model.text=null")
    assert trained.agreement is None and trained.grounding is None
    assert trained.notes[-2:] == (
        "agreement: skipped, the model reads no captions",
        "grounding: skipped, the model reads no captions",
    )
    capsys.readouterr()
    other = tmp_path / "other"
    evaluated(other, "evaluate.tasks=[knn]")
    for number in range(20):
        path = tmp_path / "photos" / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 12, 0, 100)).save(path)
    code = main(
        ["evaluate", str(other / "run"), f"evaluate.folder={tmp_path / 'photos'}",
         "evaluate.labels=[]", "evaluate.tasks=[knn,agreement]"]
    )  # fmt: skip
    assert code == 0
    assert "agreement: skipped, these images have no captions" in capsys.readouterr().out


def test_predictors_that_attend_to_captions_only_have_agreement_but_no_grounding() -> None:
    test = images_of([["a star"], ["a ring"]], [[box("star", 0.2, 0.2, 0.8, 0.8)], None])
    model, text = tiny_model("caption_attention"), HashedEncoder(TextConfig(width=WORDS))
    config = tiny_evaluation()
    probed = evaluate(
        model.target_encoder, [(test.images, [{}, {}])], [(test.images, [{}, {}])], config, CPU
    )
    result, tallies = with_text_path(
        probed, model, text, test, masks=MaskConfig(min_context=2), config=config, device=CPU
    )
    assert result.agreement is not None and GAIN in tallies
    assert result.grounding is None
    assert "grounding: skipped, the predictor does not attend to words" in result.notes


def with_annotations(annotations: dict[int, str | None]) -> EvaluationResult:
    """Return what the text tasks find where some images have these annotations, others a star."""
    test = images_of([["a star"]] * 12, [[box("star", 0.2, 0.2, 0.8, 0.8)]] * 12)
    for number, own in annotations.items():
        test.records[number]["annotations"] = own
    model, config = tiny_model(), tiny_evaluation()
    batches = [(test.images, [{}] * 12)]
    return with_text_path(
        evaluate(model.target_encoder, batches, batches, config, CPU),
        model,
        HashedEncoder(TextConfig(width=WORDS)),
        test,
        masks=MaskConfig(min_context=2),
        config=config,
        device=CPU,
    )[0]


def test_annotations_that_cannot_be_read_cost_grounding_alone() -> None:
    result = with_annotations({3: '[{"category": null}]'})
    assert result.spectrum is not None and result.agreement is not None
    assert result.grounding is None
    assert result.notes[-1].startswith(
        f"grounding: skipped, the annotations of sample {3:032x} are malformed: expected a class"
    )


def test_words_for_objects_without_a_place_are_noted() -> None:
    result = with_annotations({3: '["star"]', 4: '{"objects": ["star", "ring"]}'})
    assert result.grounding is not None
    assert result.notes[-1].startswith(
        "grounding: 2 words name an object without box or polygon; give each"
    )
    assert not any("grounding" in note for note in with_annotations({}).notes)


def tiny_evaluation() -> EvaluateConfig:
    return EvaluateConfig(
        tasks=["spectrum", "agreement", "grounding"], image_size=32, lidar_images=0
    )


def test_what_is_shown_does_not_depend_on_how_captions_were_trained_on(tmp_path: Path) -> None:
    scenes(tmp_path)

    def shown(*overrides: str) -> tuple[tuple[str, ...], list[list[str]]]:
        found = captioned_images(tiny_config(tmp_path, *overrides))
        return found.uids, found.texts(range(len(found)))

    uids, texts = shown("data.captions_per_image=2")
    assert len(uids) == 20 and {len(own) for own in texts} == {0, 2}
    for override in (
        "data.noise={kind: derangement, rate: 1.0}",
        "data.min_caption_quality=0.6",
        "data.min_caption_agreement=0.6",
        "data.caption_sampling=quality",
        "data.filter=quality_best >= 0.99",
        "train.seed=7",
    ):
        assert shown("data.captions_per_image=2", override) == (uids, texts)
    assert shown("evaluate.captions_per_image=2") == (uids, texts)
    nested = shown("evaluate.captions_per_image=1")[1]
    assert nested == [own[:1] for own in texts]
    only = shown('evaluate.caption_sources=["x:*"]')[1]
    assert all("here" not in text for own in only for text in own)
    assert any("here" in text for own in texts for text in own)
    assert shown("evaluate.captioned_images=5", "evaluate.batch=3")[0] == uids[:5]
    assert shown("evaluate.max_test=4")[0] == uids[:4]


def test_settings_of_evaluations_that_are_gone_do_not_stop_a_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "evaluate.batch=3").model_dump(mode="json")
    old = {**config, "evaluate": {**config["evaluate"], "text_gain_images": 512}}
    found = TrainConfig.model_validate(stored(old, tmp_path / "elsewhere"))
    assert found.evaluate.batch == 3 and found.run == str(tmp_path / "elsewhere")
