"""Models without a chat template: what they are given, and what of their output they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.captioners.answers import Answer
from pipeline.captioners.vision_language import Decoding, ImageBatch, VisionLanguageModel
from tests.pipeline.captioners import tiny_models as tiny

DECODING = Decoding(
    max_new_tokens=4, do_sample=False, temperature=1.0, top_p=1.0, num_beams=1,
    length_penalty=1.0, repetition_penalty=1.0,
)  # fmt: skip


def asked(folder: Path, prompt: str) -> tuple[VisionLanguageModel, dict[str, Any], list[Answer]]:
    """Put a prompt to a model for two pictures; return it, what it was given, and its answers."""
    model = VisionLanguageModel(str(folder), "fp32", "cpu", None)
    pictures = [Image.new("RGB", (40 + shade, 30), (shade,) * 3) for shade in (0, 200)]
    batch = ImageBatch(pictures, prompt, [0, 0])
    inputs = model.prepare(batch)
    return model, inputs, model.generate(batch, inputs, DECODING)


def never_ending(model: VisionLanguageModel) -> None:
    """Have a model write the word `dog` for ever."""
    dog = model.tokenizer.convert_tokens_to_ids("dog")

    def only_dogs(module: Any, inputs: Any, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e4).index_fill_(-1, torch.tensor([dog]), 0.0)

    model.model.get_output_embeddings().register_forward_hook(only_dogs)


def test_git_goes_on_after_the_prompt_and_not_after_its_end(tmp_path: Path) -> None:
    model, inputs, _ = asked(tiny.save_git(tmp_path), "a red dog")
    ids = inputs["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "a", "red", "dog"]
    assert inputs["attention_mask"].shape == ids.shape
    never_ending(model)
    answers = model.generate(ImageBatch([None, None], "a red dog", [0, 0]), inputs, DECODING)
    assert answers == [Answer("dog dog dog dog", finished=False, tokens=4)] * 2
    _, inputs, answers = asked(tmp_path, "")
    assert "input_ids" not in inputs
    assert len(answers) == 2


@pytest.mark.parametrize("prompt", ["", "a red"])
def test_a_blip_2_on_opt_that_never_ends_is_not_finished(tmp_path: Path, prompt: str) -> None:
    folder = tiny.save_blip2(tmp_path, "opt")
    model, inputs, _ = asked(folder, prompt)
    given = model.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert given == ["<image>"] * 4 + ["[EOS]", *prompt.split()]
    never_ending(model)
    answers = model.generate(ImageBatch([None, None], prompt, [0, 0]), inputs, DECODING)
    assert answers == [Answer("dog dog dog dog", finished=False, tokens=4)] * 2


@pytest.mark.parametrize("prompt", ["", "a red"])
def test_a_blip_2_on_t5_needs_no_prompt(tmp_path: Path, prompt: str) -> None:
    _, inputs, answers = asked(tiny.save_blip2(tmp_path, "t5"), prompt)
    assert inputs["input_ids"].shape == (2, 4 + len(prompt.split()))
    assert len(answers) == 2


@pytest.mark.parametrize("prompt", ["", "a red"])
def test_a_paligemma_needs_no_prompt(tmp_path: Path, prompt: str) -> None:
    model, inputs, answers = asked(tiny.save_paligemma(tmp_path), prompt)
    given = model.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert given == ["<image>"] * 4 + ["[BOS]", *prompt.split()]
    assert len(answers) == 2
