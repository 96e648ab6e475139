"""The `transformers` captioner on real model classes: tiny, random, offline."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from pipeline.captioners import vision_language
from pipeline.captioners.answers import Answer, Answers
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.sampling import RowSampler
from pipeline.captioners.transformers import TransformersCaptioner, TransformersConfig
from pipeline.captioners.vision_language import ImageBatch, load_model
from pipeline.settings import ConfigError, build

# pytest's importlib mode puts no test folder on the path.
_spec = importlib.util.spec_from_file_location(
    "tiny_models", Path(__file__).with_name("tiny_models.py")
)
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
sys.modules["tiny_models"] = tiny
_spec.loader.exec_module(tiny)

PROMPTS = {"short": "describe the image in short", "detail": "describe the image in detail"}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "blip": tiny.save_blip(root / "blip"),
        "llava": tiny.save_llava(root / "llava"),
        "vit_gpt2": tiny.save_vit_gpt2(root / "vit_gpt2"),
    }


def _requests(count: int) -> list[CaptionRequest]:
    return [
        CaptionRequest(f"{number:032x}", tiny.picture(20 * number, (40 + number, 30)), None)
        for number in range(count)
    ]


def _config(folder: Path, **changes: Any) -> TransformersConfig:
    data = {"model": str(folder), "prompts": PROMPTS, "max_new_tokens": 6, "device": "cpu"}
    return build(TransformersConfig, data | changes)


def _stub(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: Any
) -> tuple[TransformersCaptioner, list[int]]:
    """Let a loaded model's `generate` be `answer(batch)`; return the sizes it is called with."""
    captioner = TransformersCaptioner(_config(folder, batch_size=4))
    model, sizes = load_model(str(folder), "auto", "cpu"), []

    def generate(batch: Any, inputs: Any, decoding: Any) -> Any:
        sizes.append(len(batch.pictures))
        return answer(batch)

    monkeypatch.setattr(model, "generate", generate)
    return captioner, sizes


@pytest.mark.parametrize("name", ["blip", "llava", "vit_gpt2"])
def test_every_family_captions_and_batches_do_not_matter(
    folders: dict[str, Path], name: str
) -> None:
    prompts = {"short": ""} if name == "vit_gpt2" else PROMPTS
    results = [
        TransformersCaptioner(_config(folders[name], prompts=prompts, batch_size=size)).caption(
            _requests(3)
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


def test_prompts_are_padded_on_the_left(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["llava"]), "auto", "cpu")
    assert model.chats
    assert not model.model.training
    short, long = model.tokenizer(["a", "a red dog"], padding=True)["input_ids"]
    assert len(short) == len(long)
    assert short[-1] == long[0] and short[0] == model.tokenizer.pad_token_id


def test_images_of_many_sizes_share_a_batch(tmp_path: Path) -> None:
    folder = tiny.save_qwen2_vl(tmp_path / "qwen2_vl")
    requests = [
        CaptionRequest(f"{n:032x}", tiny.picture(20 * n, (40 + 40 * n, 30)), None) for n in range(4)
    ]

    def run(size: int) -> list[CaptionResult]:
        config = _config(folder, batch_size=size, max_new_tokens=8)
        return TransformersCaptioner(config).caption(requests)

    assert run(4) == run(1)
    model = load_model(str(folder), "auto", "cpu")
    pictures = [Image.new("RGB", (40 + 40 * n, 30)) for n in range(4)]
    laid_out = model.prepare(ImageBatch(pictures, PROMPTS["short"], [0] * 4))
    padding = (laid_out["attention_mask"] == 0).sum(dim=1)
    assert padding.max() > 0  # or the batch had nothing to pad
    assert bool((laid_out["attention_mask"][:, -1] == 1).all())


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


def test_a_sampled_answer_does_not_depend_on_its_batch(folders: dict[str, Path]) -> None:
    def run(size: int, order: int = 1, **changes: Any) -> dict[str, CaptionResult]:
        settings = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 10, **changes}
        config = _config(folders["llava"], batch_size=size, **settings)
        requests = _requests(5)[::order]
        results = TransformersCaptioner(config).caption(requests)
        return {request.uid: result for request, result in zip(requests, results, strict=True)}

    alone = run(1)
    assert run(2) == run(5) == run(3, order=-1) == alone
    assert run(2, seed=1) != alone
    assert len({str(result.captions) for result in alone.values()}) > 1
    greedy = _config(folders["llava"], max_new_tokens=10)
    almost_greedy = run(2, temperature=1.0, top_p=1e-6)
    assert list(almost_greedy.values()) == TransformersCaptioner(greedy).caption(_requests(5))


def test_memory_running_out_changes_no_sampled_answer(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(folders["llava"], batch_size=4, do_sample=True, max_new_tokens=8)
    expected = TransformersCaptioner(config).caption(_requests(5))
    model = load_model(str(folders["llava"]), "auto", "cpu")
    whole, sizes = model.generate, []

    def generate(batch: Any, inputs: Any, decoding: Any) -> Any:
        sizes.append(len(batch.pictures))
        if len(batch.pictures) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(batch, inputs, decoding)

    monkeypatch.setattr(model, "generate", generate)
    assert TransformersCaptioner(config).caption(_requests(5)) == expected
    assert sizes[:3] == [4, 2, 2] and max(sizes[1:]) == 2


def test_draws_follow_the_distribution_and_the_nucleus() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    scores = shares.log().expand(count, -1)

    def drawn(temperature: float, top_p: float) -> torch.Tensor:
        sampler = RowSampler(range(count), temperature, top_p)
        chosen = sampler(torch.zeros(count, 1), scores)
        assert bool((torch.isfinite(chosen).sum(dim=1) == 1).all())
        return torch.bincount(chosen.argmax(dim=1), minlength=4) / count

    assert torch.allclose(drawn(1.0, 1.0), shares, atol=0.03)
    squared = shares.square() / shares.square().sum()
    assert torch.allclose(drawn(0.5, 1.0), squared, atol=0.03)
    assert torch.allclose(drawn(1.0, 0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.03)
    assert drawn(1.0, 0.4).tolist() == [1, 0, 0, 0]


def test_decoding_settings_reach_generate(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(folders["llava"]), "auto", "cpu")
    seen: list[dict[str, Any]] = []
    whole = model.model.generate

    def generate(**arguments: Any) -> Any:
        seen.append(arguments)
        return whole(**arguments)

    monkeypatch.setattr(model.model, "generate", generate)
    settings = {"num_beams": 2, "length_penalty": 2.0, "repetition_penalty": 1.5}
    TransformersCaptioner(_config(folders["llava"], **settings)).caption(_requests(1))
    assert {key: seen[0][key] for key in settings} == settings
    assert seen[0]["max_new_tokens"] == 6 and seen[0]["do_sample"] is False


def test_tokens_and_the_time_of_generating_are_counted(
    folders: dict[str, Path],
) -> None:
    for name in ("blip", "llava", "vit_gpt2"):
        prompts = {"short": "" if name == "vit_gpt2" else "a red dog on"}
        answers = Answers()
        config = _config(folders[name], prompts=prompts, max_new_tokens=5)
        TransformersCaptioner(config).caption(_requests(3), answers)
        costs = answers.bill()
        assert costs.asked == 3
        assert 3 <= costs.tokens <= 15
        assert costs.busy_s > 0 and costs.gpu_s == 0


def test_bf16_is_used_where_it_is_asked_for(folders: dict[str, Path]) -> None:
    captioner = TransformersCaptioner(_config(folders["llava"], dtype="bf16"))
    results = captioner.caption(_requests(2))
    model = load_model(str(folders["llava"]), "bf16", "cpu")
    assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
    assert all(bool(result.captions) == (result.error is None) for result in results)


def test_the_revision_is_the_hubs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    whole = transformers.AutoConfig.from_pretrained

    def from_pretrained(name: str, **arguments: Any) -> Any:
        asked.append(arguments.get("revision"))
        return whole(name, **arguments)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    TransformersCaptioner(_config(folders["llava"], revision="v1.0")).caption(_requests(1))
    assert asked[0] == "v1.0"
    default = _config(folders["llava"])
    assert default.question("x") != _config(folders["llava"], revision="v1.0").question("x")
    assert default.question("x") == _config(folders["llava"], batch_size=3).question("x")


def test_sampling_is_a_function_of_the_seed(folders: dict[str, Path]) -> None:
    def run(seed: int) -> list[CaptionResult]:
        config = _config(
            folders["llava"], do_sample=True, temperature=2.0, seed=seed, max_new_tokens=12
        )
        return TransformersCaptioner(config).caption(_requests(2))

    before = torch.get_rng_state()
    first = run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert run(1) == first
    assert run(2) != first


def test_bad_images_are_recorded_and_the_others_go_on(folders: dict[str, Path]) -> None:
    requests = _requests(3)
    requests[1] = CaptionRequest("1", b"\x89PNG not an image", None)
    results = TransformersCaptioner(_config(folders["llava"])).caption(requests)
    assert results[1] == CaptionResult([], "decode_failed")
    assert TransformersCaptioner(_config(folders["llava"])).caption([]) == []


def test_memory_errors_halve_the_batch(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(batch: Any) -> list[Answer]:
        if len(batch.pictures) > 1:
            raise torch.OutOfMemoryError("out of memory")
        if batch.pictures[0].width == 42:
            raise torch.OutOfMemoryError("out of memory")
        return [Answer("A red dog runs on the grass.", True)]

    captioner, sizes = _stub(monkeypatch, folders["llava"], answer)
    results = captioner.caption(_requests(4))
    assert sizes[:3] == [4, 2, 1]
    assert [result.error for result in results] == [None, None, "out_of_memory", None]


def test_one_failing_image_is_its_own_failure_but_all_failing_is_an_error(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {41}

    def answer(batch: Any) -> list[Answer]:
        if any(picture.width in broken for picture in batch.pictures):
            raise ValueError("cannot take this image")
        return [Answer("A red dog.", True)] * len(batch.pictures)

    captioner, _ = _stub(monkeypatch, folders["llava"], answer)
    assert [r.error for r in captioner.caption(_requests(3))] == [None, "model_failed", None]
    broken |= {40, 42}
    with pytest.raises(ValueError, match="cannot take this image"):
        captioner.caption(_requests(3))


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
    captioner, _ = _stub(
        monkeypatch, folders["llava"], lambda batch: [answer] * len(batch.pictures)
    )
    (result,) = captioner.caption(_requests(1))
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

    _stub(monkeypatch, folders["llava"], answer)
    captioner = TransformersCaptioner(_config(folders["llava"], max_captions=4))
    (result,) = captioner.caption(_requests(1))
    assert [prompt for _, prompt in result.captions] == ["short", "detail", "detail", "detail"]


def test_the_model_loads_once_and_the_captioner_travels(folders: dict[str, Path]) -> None:
    captioner = TransformersCaptioner(_config(folders["llava"]))
    results = captioner.caption(_requests(1))
    loaded = vision_language._load.cache_info().misses
    copy = pickle.loads(pickle.dumps(captioner))
    assert copy.caption(_requests(1)) == results
    assert vision_language._load.cache_info().misses == loaded
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
        TransformersCaptioner(_config(Path("some/model"), **change))


def test_folders_without_a_model_and_prompts_without_a_reader_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        TransformersCaptioner(_config(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="cannot be loaded as an image-to-text model"):
        TransformersCaptioner(_config(tmp_path)).caption(_requests(1))
    with pytest.raises(ConfigError, match="takes no prompt"):
        TransformersCaptioner(_config(folders["vit_gpt2"])).caption(_requests(1))


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    with pytest.raises(ConfigError, match="pip install torch transformers"):
        TransformersCaptioner(_config(Path("some/model")))
