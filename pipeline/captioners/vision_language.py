"""Hugging Face image-to-text models behind one call: pictures and a prompt in, texts out.

Three families: models with a chat template (LLaVA, Idefics, SmolVLM, Qwen-VL, …) answer the prompt;
models whose processor takes text without one (BLIP, GIT) continue it; encoder-decoders of vision
(ViT-GPT2) take no prompt.
"""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.settings import ConfigError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_LOADING = threading.Lock()


@dataclass(frozen=True)
class ImageBatch:
    """RGB pictures (PIL), the prompt for all of them, and the seed of sampling in [0, 2³²)."""

    pictures: list[Any]
    prompt: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and whether it ended by itself rather than at the token limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, as `transformers`' `generate` names it."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    num_beams: int
    repetition_penalty: float


def load_model(name: str, dtype: str, device: str) -> VisionLanguageModel:
    """Return the model of this process, loading it if it is not the one loaded last.

    Raises `ConfigError` if `name` is not to be had or is no image-to-text model.
    """
    with _LOADING:
        return _load(name, dtype, device)


@functools.lru_cache(maxsize=1)
def _load(name: str, dtype: str, device: str) -> VisionLanguageModel:
    return VisionLanguageModel(name, dtype, device)


class VisionLanguageModel:
    """A loaded model with its processor, in evaluation mode."""

    def __init__(self, name: str, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        self.device = torch.device(_device(device))
        self.dtype = _dtype(dtype, self.device)
        try:
            config = AutoConfig.from_pretrained(name)
            self.processor = _processor(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=self.dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"captioner.model: {name} cannot be loaded as an image-to-text model "
                f"({_first_line(error)}); give a hub name this machine can reach, or a folder "
                "written by save_pretrained of the model and its processor"
            ) from error
        self.name = name
        self.model: Any = model.eval().to(self.device)
        self.takes_prompt = config.model_type != "vision-encoder-decoder"
        self.chats = bool(getattr(self.processor, "chat_template", None))
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        # Generation continues at the right end, so padding goes to the left.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # In the model's settings, not as an argument: BLIP's `generate` passes it a second time.
        if self.model.generation_config.pad_token_id is None:
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id

    def generate(self, batch: ImageBatch, decoding: Decoding) -> list[Answer]:
        """Return one answer per picture; raises whatever the model raises, such as OOM.

        With `do_sample` the answers are a function of the seed and of the pictures of the batch.
        """
        import torch

        if batch.prompt and not self.takes_prompt:
            raise ConfigError(
                f"captioner.prompts: {self.name} takes no prompt; set prompts: {{short: ''}}"
            )
        inputs = self._inputs(batch)
        arguments: dict[str, Any] = {
            "max_new_tokens": decoding.max_new_tokens,
            "do_sample": decoding.do_sample,
            "num_beams": decoding.num_beams,
            "repetition_penalty": decoding.repetition_penalty,
        }
        if decoding.do_sample:
            arguments["temperature"] = decoding.temperature
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(batch.seed)
            output: torch.Tensor = self.model.generate(**inputs, **arguments)
        return self._answers(output, inputs.get("input_ids"), batch.prompt)

    def _inputs(self, batch: ImageBatch) -> dict[str, Any]:
        if self.chats:
            content = [{"type": "image"}, {"type": "text", "text": batch.prompt}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            encoded = self.processor(
                images=[[picture] for picture in batch.pictures],
                text=[text] * len(batch.pictures),
                padding=True,
                return_tensors="pt",
            )
        elif batch.prompt:
            encoded = self.processor(
                images=batch.pictures,
                text=[batch.prompt] * len(batch.pictures),
                padding=True,
                return_tensors="pt",
            )
        else:
            encoded = self.processor(images=batch.pictures, return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in encoded.items()
            if hasattr(value, "is_floating_point")
        }

    def _answers(self, output: Any, prompt_ids: Any | None, prompt: str) -> list[Answer]:
        """Cut the prompt off, by tokens where they lead the output, by text where they do not."""
        if prompt_ids is not None:
            length = prompt_ids.shape[1]
            if output.shape[1] >= length and bool((output[:, :length] == prompt_ids).all()):
                output, prompt = output[:, length:], ""
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        ends = set(_as_list(self.model.generation_config.eos_token_id))
        ends |= set(_as_list(self.tokenizer.eos_token_id)) | set(
            _as_list(getattr(self.tokenizer, "sep_token_id", None))
        )
        return [
            Answer(_without(text.strip(), prompt), bool(ends & set(row.tolist())))
            for text, row in zip(texts, output, strict=True)
        ]


class _ImageAndText:
    """A processor for models that were saved with an image processor and a tokenizer only."""

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.image_processor = AutoImageProcessor.from_pretrained(name)
        self.tokenizer = AutoTokenizer.from_pretrained(name)

    def __call__(self, images: list[Any], return_tensors: str) -> Any:
        return self.image_processor(images, return_tensors=return_tensors)


def _processor(name: str) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return _ImageAndText(name)
    # Without a processor class the tokenizer or the image processor alone comes back.
    whole = hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
    return processor if whole else _ImageAndText(name)


def _device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"captioner.device: {device} asked for, but torch sees no GPU; use auto")
    return device


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    import torch

    if dtype == "bf16":
        return torch.bfloat16
    # Only where the hardware multiplies it: emulated bf16 on a CPU is slower than float32.
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if dtype == "auto" and fast else torch.float32


def _without(text: str, prompt: str) -> str:
    """Remove a prompt that the model repeats before its answer, whatever its case and spacing."""
    words, lead = text.split(), prompt.lower().split()
    if lead and [word.lower() for word in words[: len(lead)]] == lead:
        return " ".join(words[len(lead) :])
    return text


def _as_list(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
