"""How the `transformers` captioner batches, samples and decodes, on real model classes."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import AutoProcessor

from pipeline.captioners.answers import Answer, Answers
from pipeline.captioners.loaded import hold_models, load_model
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.sampling import RowSampler
from pipeline.captioners.transformers import TransformersCaptioner
from pipeline.captioners.vision_language import ImageBatch
from pipeline.device_errors import DeviceLostError
from tests.pipeline.captioners import tiny_models as tiny
from tests.pipeline.captioners.tiny_captioners import PROMPTS, config_for, requests_for, stubbed


def test_prompts_are_padded_on_the_left(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["llava"]), "auto", "cpu")
    assert model.chats
    assert not model.model.training
    short, long = model.tokenizer(["a", "a red dog"], padding=True)["input_ids"]
    assert len(short) == len(long)
    assert short[-1] == long[0] and short[0] == model.tokenizer.pad_token_id


@pytest.mark.parametrize("start", ["", "{{ bos_token }} "])
def test_a_chat_starts_once(folders: dict[str, Path], tmp_path: Path, start: str) -> None:
    folder = shutil.copytree(folders["llava"], tmp_path / "llava")
    processor = AutoProcessor.from_pretrained(folder)
    words = processor.tokenizer
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", words.bos_token_id)]
    )
    processor.chat_template = start + tiny.TEMPLATE
    processor.save_pretrained(folder)
    model = load_model(str(folder), "auto", "cpu")
    laid_out = model.prepare(ImageBatch([Image.new("RGB", (40, 30))], "a dog", [0]))
    tokens = model.tokenizer.convert_ids_to_tokens(laid_out["input_ids"][0])
    assert tokens[:3] == ["[BOS]", "user", ":"]


def test_images_of_many_sizes_share_a_batch(tmp_path: Path) -> None:
    folder = tiny.save_qwen2_vl(tmp_path / "qwen2_vl")
    requests = [
        CaptionRequest(f"{n:032x}", tiny.picture(20 * n, (40 + 40 * n, 30)), None) for n in range(4)
    ]

    def run(size: int) -> list[CaptionResult]:
        config = config_for(folder, batch_size=size, max_new_tokens=8)
        return TransformersCaptioner(config).caption(requests)

    assert run(4) == run(1)
    model = load_model(str(folder), "auto", "cpu")
    pictures = [Image.new("RGB", (40 + 40 * n, 30)) for n in range(4)]
    laid_out = model.prepare(ImageBatch(pictures, PROMPTS["short"], [0] * 4))
    padding = (laid_out["attention_mask"] == 0).sum(dim=1)
    assert padding.max() > 0  # or the batch had nothing to pad
    assert bool((laid_out["attention_mask"][:, -1] == 1).all())


def test_a_sampled_answer_does_not_depend_on_its_batch(folders: dict[str, Path]) -> None:
    def run(size: int, order: int = 1, **changes: Any) -> dict[str, CaptionResult]:
        settings = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 10, **changes}
        config = config_for(folders["llava"], batch_size=size, **settings)
        requests = requests_for(5)[::order]
        results = TransformersCaptioner(config).caption(requests)
        return {request.uid: result for request, result in zip(requests, results, strict=True)}

    alone = run(1)
    assert run(2) == run(5) == run(3, order=-1) == alone
    assert run(2, seed=1) != alone
    assert len({str(result.captions) for result in alone.values()}) > 1
    greedy = config_for(folders["llava"], max_new_tokens=10)
    almost_greedy = run(2, temperature=1.0, top_p=1e-6)
    assert list(almost_greedy.values()) == TransformersCaptioner(greedy).caption(requests_for(5))


def test_memory_running_out_changes_no_sampled_answer(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(folders["llava"], batch_size=4, do_sample=True, max_new_tokens=8)
    expected = TransformersCaptioner(config).caption(requests_for(5))
    model = load_model(str(folders["llava"]), "auto", "cpu")
    whole, sizes = model.generate, []

    def generate(batch: Any, inputs: Any, decoding: Any) -> Any:
        sizes.append(len(batch.pictures))
        if len(batch.pictures) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(batch, inputs, decoding)

    monkeypatch.setattr(model, "generate", generate)
    assert TransformersCaptioner(config).caption(requests_for(5)) == expected
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
    TransformersCaptioner(config_for(folders["llava"], **settings)).caption(requests_for(1))
    assert {key: seen[0][key] for key in settings} == settings
    assert seen[0]["max_new_tokens"] == 6 and seen[0]["do_sample"] is False


def test_bf16_is_used_where_it_is_asked_for(folders: dict[str, Path]) -> None:
    captioner = TransformersCaptioner(config_for(folders["llava"], dtype="bf16"))
    results = captioner.caption(requests_for(2))
    model = load_model(str(folders["llava"]), "bf16", "cpu")
    assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
    assert all(bool(result.captions) == (result.error is None) for result in results)


def test_sampling_is_a_function_of_the_seed(folders: dict[str, Path]) -> None:
    def run(seed: int) -> list[CaptionResult]:
        config = config_for(
            folders["llava"], do_sample=True, temperature=2.0, seed=seed, max_new_tokens=12
        )
        return TransformersCaptioner(config).caption(requests_for(2))

    before = torch.get_rng_state()
    first = run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert run(1) == first
    assert run(2) != first


def test_memory_errors_halve_the_batch(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(batch: Any) -> list[Answer]:
        if len(batch.pictures) > 1:
            raise torch.OutOfMemoryError("out of memory")
        if batch.pictures[0].width == 42:
            raise torch.OutOfMemoryError("out of memory")
        return [Answer("A red dog runs on the grass.", True)]

    captioner, sizes = stubbed(monkeypatch, folders["llava"], answer)
    results = captioner.caption(requests_for(4))
    assert sizes[:3] == [4, 2, 1]
    assert [result.error for result in results] == [None, None, "out_of_memory", None]


def test_models_of_other_captioners_go_before_an_image_is_given_up(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_models(2)
    others = [load_model(str(folders["blip"]), "auto", "cpu")]
    there = weakref.ref(others.pop())

    def answer(batch: Any) -> list[Answer]:
        if there() is not None:
            raise torch.OutOfMemoryError("out of memory")
        return [Answer("A red dog runs on the grass.", True)] * len(batch.pictures)

    captioner, sizes = stubbed(monkeypatch, folders["llava"], answer)
    results = captioner.caption(requests_for(8))
    hold_models(1)
    assert [result.error for result in results] == [None] * 8
    assert sizes == [4, 2, 1, 1, 1, 2, 4, 4, 4]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ],
)
def test_a_lost_device_fails_the_part_and_is_no_images_fault(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    said: list[int] = []

    def answer(batch: Any) -> list[Answer]:
        if said:
            raise error
        said.append(1)
        return [Answer("A red dog runs on the grass.", True)] * len(batch.pictures)

    captioner, sizes = stubbed(monkeypatch, folders["llava"], answer)
    answers = Answers()
    with pytest.raises(DeviceLostError, match=r"llava is lost .* restarted \(.*CUDA error"):
        captioner.caption(requests_for(8), answers)
    assert sizes == [4, 4]
    assert answers.bill().asked == 4  # what was there before is kept
    # The model is gone with its device: this one is another, which works.
    assert all(result.captions or result.error for result in captioner.caption(requests_for(1)))
    assert sizes == [4, 4]


def test_memory_that_cuda_itself_lacks_is_no_lost_device(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(batch: Any) -> list[Answer]:
        if len(batch.pictures) > 2:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return [Answer("A red dog runs on the grass.", True)] * len(batch.pictures)

    captioner, sizes = stubbed(monkeypatch, folders["llava"], answer)
    assert [result.error for result in captioner.caption(requests_for(4))] == [None] * 4
    assert sizes[:3] == [4, 2, 2]
