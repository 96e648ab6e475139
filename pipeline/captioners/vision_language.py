"""Hugging Face image-to-text models behind one call: pictures and a prompt in, texts out.

Three families: models with a chat template (LLaVA, Idefics, SmolVLM, Qwen-VL, …) answer the prompt;
models whose processor takes text without one (BLIP, GIT, BLIP-2, PaliGemma) continue it;
encoder-decoders of vision (ViT-GPT2) take no prompt.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.captioners.answers import Answer
from pipeline.captioners.sampling import RowSampler
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    import torch

#: Models that find the image's place by tokens, and without a chat template: their processors write
#: those only beside a text, be it empty.
_NEED_TEXT: Final = {"blip-2", "instructblip", "paligemma"}


@dataclass(frozen=True)
class ImageBatch:
    """RGB pictures (PIL), the prompt for all of them, and a seed of sampling for each."""

    pictures: list[Any]
    prompt: str
    seeds: list[int]


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, as `transformers`' `generate` names it."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    num_beams: int
    length_penalty: float
    repetition_penalty: float


class VisionLanguageModel:
    """A loaded model with its processor, in evaluation mode."""

    def __init__(self, name: str, dtype: str, device: str, revision: str | None) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        self.device = torch.device(_device(device))
        self.dtype = _dtype(dtype, self.device)
        try:
            config = AutoConfig.from_pretrained(name, revision=revision)
            self.processor = _processor(name, revision)
            model = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, dtype=self.dtype
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"captioner.model: {name} cannot be loaded as an image-to-text model "
                f"({first_line(error)}); give a hub name this machine can reach, or a folder "
                "written by save_pretrained of the model and its processor"
            ) from error
        except ImportError as error:
            # Which packages a processor needs is known only to itself, once it is made.
            raise ConfigError(
                f"captioner.model: {name} needs a package that is not installed here "
                f"({first_line(error)}); pip install it on every machine that has workers"
            ) from error
        self.name = name
        # The tokenizer, in Rust, refuses two threads at once.
        self._processing = threading.Lock()
        self.model: Any = model.eval().to(self.device)
        self.takes_prompt = config.model_type != "vision-encoder-decoder"
        self._needs_text = config.model_type in _NEED_TEXT
        self._continues = _continues(config)
        self.chats = bool(getattr(self.processor, "chat_template", None))
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        # Generation continues at the right end, so padding goes to the left.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # In the model's settings, not as an argument: BLIP's `generate` passes it a second time.
        if self.model.generation_config.pad_token_id is None:
            self.model.generation_config.pad_token_id = self.tokenizer.pad_token_id

    def prepare(self, batch: ImageBatch) -> dict[str, Any]:
        """Return what the model takes, on the CPU; may run while another batch is generated."""
        if batch.prompt and not self.takes_prompt:
            raise ConfigError(
                f"captioner.prompts: {self.name} takes no prompt; set prompts: {{short: ''}}"
            )
        arguments: dict[str, Any] = {"images": batch.pictures, "return_tensors": "pt"}
        text = batch.prompt
        if self.chats:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            arguments["images"] = [[picture] for picture in batch.pictures]
            # Some templates write the start token that the tokenizer would put first once more.
            start = self.tokenizer.bos_token
            if start and text.startswith(start):
                arguments["add_special_tokens"] = False
        if text or self._needs_text:
            arguments |= {"text": [text] * len(batch.pictures), "padding": True}
        with self._processing:
            encoded = self.processor(**arguments)
        inputs = {n: value for n, value in encoded.items() if hasattr(value, "is_floating_point")}
        open_ended = batch.prompt and self._continues and not self.chats
        return self._without_end(inputs) if open_ended else inputs

    def _without_end(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take away the token by which a tokenizer ends every text: the text goes on."""
        words, ids = self.tokenizer, inputs["input_ids"]
        if not set(ids[:, -1].tolist()) <= _tokens(words.eos_token_id, words.sep_token_id):
            return inputs
        return {n: v[:, :-1] if v.shape == ids.shape else v for n, v in inputs.items()}

    def generate(
        self, batch: ImageBatch, inputs: dict[str, Any], decoding: Decoding
    ) -> list[Answer]:
        """Return one answer per picture; raises whatever the model raises, such as OOM.

        `inputs` is what `prepare` made of the batch. With `do_sample` an answer is a function of
        its own seed and picture, as without.
        """
        import torch

        placed = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        arguments: dict[str, Any] = {
            "max_new_tokens": decoding.max_new_tokens,
            "do_sample": False,
            "num_beams": decoding.num_beams,
            "repetition_penalty": decoding.repetition_penalty,
        }
        if decoding.num_beams > 1:
            arguments["length_penalty"] = decoding.length_penalty
        if decoding.do_sample:
            sampler = RowSampler(batch.seeds, decoding.temperature, decoding.top_p)
            arguments["logits_processor"] = [sampler]
        with torch.inference_mode():
            output: torch.Tensor = self.model.generate(**placed, **arguments)
        return self._answers(output, placed.get("input_ids"), batch.prompt)

    def _answers(self, output: Any, prompt_ids: Any | None, prompt: str) -> list[Answer]:
        """Cut the prompt off, by tokens where they lead the output, by text where they do not."""
        lead = self._lead(output, prompt_ids)
        # Where only a start token leads, a prompt that was given may still be in the text.
        prompt = "" if lead > 1 else prompt
        output = output[:, lead:]
        with self._processing:
            texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        settings, words = self.model.generation_config, self.tokenizer
        ends = _tokens(settings.eos_token_id, words.eos_token_id, words.sep_token_id)
        answers = []
        for text, row in zip(texts, output.tolist(), strict=True):
            length = next((n for n, token in enumerate(row, 1) if token in ends), None)
            answers.append(
                Answer(
                    text=_without(text.strip(), prompt),
                    finished=length is not None,
                    tokens=len(row) if length is None else length,
                )
            )
        return answers

    def _lead(self, output: Any, prompt_ids: Any | None) -> int:
        """Return how many tokens of every row were given to the model and not written by it."""
        if prompt_ids is not None and output.shape[1] >= (length := prompt_ids.shape[1]):
            if bool((output[:, :length] == prompt_ids).all()):
                return int(length)
            # BLIP puts a start token of its own first and takes the separator at the end away.
            if length > 2 and bool((output[:, 1 : length - 1] == prompt_ids[:, 1:-1]).all()):
                return int(length) - 1
        settings, words = self.model.generation_config, self.tokenizer
        starts = _tokens(settings.decoder_start_token_id, words.bos_token_id, words.cls_token_id)
        return int({row[0] for row in output[:, :1].tolist() if row} <= starts)


class _ImageAndText:
    """A processor for models that were saved with an image processor and a tokenizer only."""

    def __init__(self, name: str, revision: str | None) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.image_processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)

    def __call__(self, images: list[Any], return_tensors: str) -> Any:
        return self.image_processor(images, return_tensors=return_tensors)


def _processor(name: str, revision: str | None) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError):
        return _ImageAndText(name, revision)
    # Without a processor class the tokenizer or the image processor alone comes back.
    whole = hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
    return processor if whole else _ImageAndText(name, revision)


def _continues(config: Any) -> bool:
    """Return whether a model writes on where the text it is given stops.

    BLIP does so as well, and takes the end of the text away itself.
    """
    parts = (config, getattr(config, "text_config", None))  # InstructBLIP says it of the text alone
    answers = any(getattr(part, "is_encoder_decoder", False) for part in parts)
    return not answers and config.model_type != "blip"


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


def _tokens(*values: int | list[int] | None) -> set[int]:
    found: set[int] = set()
    for value in values:
        if value is not None:
            found |= {value} if isinstance(value, int) else set(value)
    return found


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
