"""The `transformers` captioner on real model classes: tiny, random, offline."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from pipeline.captioners import loaded
from pipeline.captioners.answers import Answer, Answers
from pipeline.captioners.loaded import load_model
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.transformers import TransformersCaptioner, TransformersConfig
from pipeline.captioners.vision_language import ImageBatch
from pipeline.settings import ConfigError, build
from tests.pipeline.captioners import tiny_models as tiny
from tests.pipeline.captioners.tiny_captioners import PROMPTS, config_for, requests_for, stubbed


@pytest.mark.parametrize("name", ["blip", "llava", "vit_gpt2"])
def test_every_family_captions_and_batches_do_not_matter(
    folders: dict[str, Path], name: str
) -> None:
    prompts = {"short": ""} if name == "vit_gpt2" else PROMPTS
    results = [
        TransformersCaptioner(config_for(folders[name], prompts=prompts, batch_size=size)).caption(
            requests_for(3)
        )
        for size in (1, 2)
    ]
    assert results[0] == results[1]
    for result in results[0]:
        assert bool(result.captions) == (result.error is None)
        assert {prompt for _, prompt in result.captions} <= set(prompts)
        for text, _ in result.captions:
            assert "describe" not in text.split()[:1]
            assert set(text.split()) <= {*tiny.WORDS, "[UNK]"}
    assert any(result.captions for result in results[0])


def test_the_papers_prompts_are_the_default_and_reach_the_model(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(TransformersConfig, {"model": str(folders["llava"]), "device": "cpu"})
    assert list(config.prompts.values()) == [
        "Describe the image in short.", "Describe the image in detail."
    ]  # fmt: skip
    model = load_model(str(folders["llava"]), "auto", "cpu")
    batch = ImageBatch(_pictures(2), PROMPTS["short"], [0, 0])
    words = model.tokenizer.batch_decode(model.prepare(batch)["input_ids"])
    assert len(set(words)) == 1
    said = [word for word in words[0].split() if word != "<image>"]
    assert said == ["user", ":", "describe", "the", "image", "in", "short"]


def _pictures(count: int) -> list[Any]:
    return [Image.new("RGB", (40 + n, 30), (n, n, n)) for n in range(count)]


def test_tokens_and_the_time_of_generating_are_counted(
    folders: dict[str, Path],
) -> None:
    for name in ("blip", "llava", "vit_gpt2"):
        prompts = {"short": "" if name == "vit_gpt2" else "a red dog on"}
        answers = Answers()
        config = config_for(folders[name], prompts=prompts, max_new_tokens=5)
        TransformersCaptioner(config).caption(requests_for(3), answers)
        costs = answers.bill()
        assert costs.asked == 3
        assert 3 <= costs.tokens <= 15
        assert costs.busy_s > 0 and costs.gpu_s == 0


def test_the_revision_is_the_hubs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    whole = transformers.AutoConfig.from_pretrained

    def from_pretrained(name: str, **arguments: Any) -> Any:
        asked.append(arguments.get("revision"))
        return whole(name, **arguments)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    TransformersCaptioner(config_for(folders["llava"], revision="v1.0")).caption(requests_for(1))
    assert asked[0] == "v1.0"
    default = config_for(folders["llava"])
    assert default.question("x") != config_for(folders["llava"], revision="v1.0").question("x")
    assert default.question("x") == config_for(folders["llava"], batch_size=3).question("x")


def test_bad_images_are_recorded_and_the_others_go_on(folders: dict[str, Path]) -> None:
    requests = requests_for(3)
    requests[1] = CaptionRequest("1", b"\x89PNG not an image", None)
    results = TransformersCaptioner(config_for(folders["llava"])).caption(requests)
    assert results[1] == CaptionResult([], "decode_failed")
    assert TransformersCaptioner(config_for(folders["llava"])).caption([]) == []


def test_one_failing_image_is_its_own_failure_but_all_failing_is_an_error(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {41}

    def answer(batch: Any) -> list[Answer]:
        if any(picture.width in broken for picture in batch.pictures):
            raise ValueError("cannot take this image")
        return [Answer("A red dog.", True)] * len(batch.pictures)

    captioner, _ = stubbed(monkeypatch, folders["llava"], answer)
    assert [r.error for r in captioner.caption(requests_for(3))] == [None, "model_failed", None]
    broken |= {40, 42}
    with pytest.raises(ValueError, match="cannot take this image"):
        captioner.caption(requests_for(3))


@pytest.mark.parametrize(
    ("answer", "captions", "error"),
    [
        (Answer("A red dog runs. It is on the grass.", True), 2, None),
        (Answer("A red dog runs. It is on the", False), 1, None),
        (Answer("A red dog on", False), 1, None),
        (Answer("1. A red dog runs.\n2. The cat sits.", True), 2, None),
        (Answer("A red dog runs. A red dog runs!", True), 1, None),
        (Answer(" ... ", True), 0, "empty_output"),
        (Answer("I'm sorry, but I cannot help with that.", True), 0, "refused"),
        (Answer("dog dog dog dog " * 10, True), 0, "degenerate"),
    ],
)
def test_answers_become_sentences_or_a_reason(
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    captions: int,
    error: str | None,
) -> None:
    captioner, _ = stubbed(
        monkeypatch, folders["llava"], lambda batch: [answer] * len(batch.pictures)
    )
    (result,) = captioner.caption(requests_for(1))
    assert len(result.captions) == captions
    assert result.error == error
    assert all(prompt == "short" for _, prompt in result.captions)


def test_at_most_k_distinct_captions_in_prompt_order(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["red", "blue", "green", "pink", "grey", "teal"]

    def answer(batch: Any) -> list[Answer]:
        short = batch.prompt.endswith("short")
        text = "A dog." if short else " ".join(f"A {n} cat and one {n} bird." for n in names)
        return [Answer(text, True)] * len(batch.pictures)

    stubbed(monkeypatch, folders["llava"], answer)
    captioner = TransformersCaptioner(config_for(folders["llava"], max_captions=4))
    (result,) = captioner.caption(requests_for(1))
    assert [prompt for _, prompt in result.captions] == ["short", "detail", "detail", "detail"]


def test_the_model_loads_once_and_the_captioner_travels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = TransformersCaptioner(config_for(folders["llava"]))
    results = captioner.caption(requests_for(1))
    monkeypatch.setattr(loaded, "VisionLanguageModel", None)  # none can be loaded any more
    copy = pickle.loads(pickle.dumps(captioner))
    assert copy.caption(requests_for(1)) == results
    assert len(pickle.dumps(captioner)) < 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/no/such/folder"}, r"captioner\.model: folder /no/such/folder does not exist"),
        ({"prompts": {"In Short": "x"}}, "lower-case"),
        ({"temperature": 0.5}, "do_sample: true"),
        ({"top_p": 0.5}, "top_p has no effect"),
        ({"do_sample": True, "num_beams": 2}, "set num_beams: 1"),
        ({"length_penalty": 2.0}, "set num_beams: 2"),
        ({"device": "gpu"}, "allowed: auto"),
        ({"dtype": "fp8"}, "allowed: auto"),
    ],
)
def test_config_errors_come_before_any_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformersCaptioner(config_for(Path("some/model"), **change))


def test_folders_without_a_model_and_prompts_without_a_reader_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        TransformersCaptioner(config_for(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="cannot be loaded as an image-to-text model"):
        TransformersCaptioner(config_for(tmp_path)).caption(requests_for(1))
    with pytest.raises(ConfigError, match="takes no prompt"):
        TransformersCaptioner(config_for(folders["vit_gpt2"])).caption(requests_for(1))


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    with pytest.raises(ConfigError, match="pip install torch transformers"):
        TransformersCaptioner(config_for(Path("some/model")))


def test_a_package_that_a_processor_lacks_is_named(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_pretrained(name: str, **arguments: Any) -> Any:
        raise ImportError(
            "Package `num2words` is required. Install it with `pip install num2words`."
        )

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", from_pretrained)
    captioner = TransformersCaptioner(config_for(folders["llava"], dtype="bf16"))
    with pytest.raises(ConfigError, match=r"llava needs a package .*pip install num2words"):
        captioner.caption(requests_for(1))


def test_smolvlms_processor_can_be_made() -> None:
    words = tiny.tokenizer()
    made = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(), words, transformers.SmolVLMVideoProcessor()
    )
    assert made.tokenizer is words, "without num2words it raises ImportError"
