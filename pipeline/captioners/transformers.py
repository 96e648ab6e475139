"""The `transformers` captioner: any Hugging Face model that turns an image into text."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.sentences import distinct, output_fault, split_sentences
from pipeline.captioners.vision_language import (
    Answer,
    Decoding,
    ImageBatch,
    VisionLanguageModel,
    load_model,
)
from pipeline.settings import ConfigError, Settings

log = logging.getLogger(__name__)

#: Why an image has no caption. `model_failed` is any other error of the model on this one image.
Failure = Literal[
    "decode_failed", "empty_output", "refused", "degenerate", "out_of_memory", "model_failed"
]

_PROMPT_ID = re.compile(r"[a-z0-9_-]+")


class TransformersConfig(Settings):
    """A Hugging Face image-to-text model, by hub name or local folder."""

    kind: Literal["transformers"] = Field(
        default="transformers", description="caption with a Hugging Face model"
    )
    model: str = Field(
        description="hub name such as HuggingFaceTB/SmolVLM-256M-Instruct, or a local folder"
    )
    prompts: dict[str, str] = Field(
        default={
            "short": "Describe the image in short.",
            "detail": "Describe the image in detail.",
        },
        min_length=1,
        description="prompt id -> prompt; the default ids are the TC-JEPA paper's two captions "
        "(in short, in detail); models without a chat template continue the prompt, so give them "
        "a beginning such as 'a photo of', or ''",
    )
    max_captions: int = Field(
        default=8, ge=1, le=64, description="most captions per image; the paper's N [captions]"
    )
    batch_size: int = Field(
        default=16, ge=1, le=1024, description="images per forward pass; halved on OOM [images]"
    )
    max_new_tokens: int = Field(
        default=192, ge=1, le=4096, description="most tokens written per image and prompt [tokens]"
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="weights and activations; auto is bf16 on GPUs that have it"
    )
    device: str = Field(
        default="auto", description="torch device; auto is cuda if there is one, else cpu"
    )
    do_sample: bool = Field(default=False, description="sample tokens instead of the likeliest")
    temperature: float = Field(
        default=1.0, gt=0, le=10, description="of sampling; needs do_sample [ratio]"
    )
    num_beams: int = Field(default=1, ge=1, le=32, description="beam search width [beams]")
    repetition_penalty: float = Field(
        default=1.0, ge=1.0, le=2.0, description="of tokens already written, 1 is none [ratio]"
    )
    seed: int = Field(default=0, ge=0, description="seed of sampling, per batch of images")

    @model_validator(mode="after")
    def _runnable(self) -> TransformersConfig:
        for name in self.prompts:
            if not _PROMPT_ID.fullmatch(name):
                raise ValueError(
                    f"prompts: id {name!r} must be of lower-case letters, digits, - and _"
                )
        if not self.model.strip():
            raise ValueError("model: empty; give a hub name or a folder")
        if self.temperature != 1.0 and not self.do_sample:
            raise ValueError("temperature has no effect without sampling; set do_sample: true")
        if self.device != "auto" and not re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", self.device):
            raise ValueError(f"device: got {self.device!r}, allowed: auto, cpu, mps, cuda, cuda:0")
        return self


class TransformersCaptioner:
    """Captioner over a Hugging Face model; see `Failure` for the closed list of errors.

    Creating one is cheap and checks what can be checked without loading: it raises `ConfigError`
    if torch, transformers or Pillow is missing, or if `model` names a folder that is not there.
    Weights are loaded at the first `caption`, once per process, and only the config is pickled.
    """

    name = "transformers"

    def __init__(self, config: TransformersConfig) -> None:
        check(config)
        self.config = config

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResult]:
        """Return up to `max_captions` distinct sentences per image, in order of the requests.

        Prompts are answered in the config's order. An image is a failure only if no prompt gave a
        caption, and then has the reason of the first prompt that failed. Raises `ConfigError` if
        the model cannot be loaded or takes no prompt, and the model's own error if it fails on
        every one of several images: that is a broken set-up, not a bad image.
        """
        model = load_model(self.config.model, self.config.dtype, self.config.device)
        pictures = [_decode(request.image) for request in requests]
        sound = [index for index, picture in enumerate(pictures) if picture is not None]
        found: list[list[tuple[str, str]]] = [[] for _ in requests]
        errors: list[Failure | None] = [
            "decode_failed" if picture is None else None for picture in pictures
        ]
        for prompt_id, prompt in self.config.prompts.items():
            answers = self._answers(model, prompt, requests, pictures, sound)
            for index, answer in zip(sound, answers, strict=True):
                texts, error = _captions(answer)
                found[index] += [(text, prompt_id) for text in texts]
                errors[index] = errors[index] or error
        kept = [distinct(captions, self.config.max_captions) for captions in found]
        return [
            CaptionResult(captions, None if captions else error or "empty_output")
            for captions, error in zip(kept, errors, strict=True)
        ]

    def _answers(
        self,
        model: VisionLanguageModel,
        prompt: str,
        requests: Sequence[CaptionRequest],
        pictures: Sequence[Any],
        sound: Sequence[int],
    ) -> list[Answer | Failure]:
        failures: list[Exception] = []
        decoding = Decoding(
            **{field.name: getattr(self.config, field.name) for field in fields(Decoding)}
        )

        def run(indices: Sequence[int]) -> list[Answer]:
            uids = ",".join(requests[index].uid for index in indices)
            seed = _seed(f"{self.config.seed}/{prompt}/{uids}")
            batch = ImageBatch([pictures[index] for index in indices], prompt, seed)
            return model.generate(batch, decoding)

        answers: list[Answer | Failure] = []
        size = self.config.batch_size
        start = 0
        while start < len(sound):
            chunk = sound[start : start + size]
            try:
                answers += run(chunk)
            except Exception as error:
                if isinstance(error, ConfigError):
                    raise
                memory = _out_of_memory(error)
                if len(chunk) > 1:
                    # Memory is short for the rest of the call too; another error is one image's.
                    if memory:
                        size = max(1, len(chunk) // 2)
                        log.warning("out of memory: going on with batches of %d images", size)
                        _release_memory()
                        continue
                    answers += [_one(run, index, failures) for index in chunk]
                else:
                    answers.append(_failure(error, failures))
            start += len(chunk)
        if len(failures) == len(sound) > 1:
            raise failures[0]
        return answers


def check(config: TransformersConfig) -> None:
    """Raise `ConfigError` if the captioner cannot run here: a missing package or folder."""
    for package, module in (
        ("torch", "torch"),
        ("transformers", "transformers"),
        ("pillow", "PIL"),
    ):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"the transformers captioner needs {package}: pip install torch transformers pillow"
            )
    name = config.model
    looks_local = name.startswith(("/", ".", "~")) or name.count("/") > 1
    folder = Path(name).expanduser()
    if looks_local and not folder.is_dir():
        raise ConfigError(
            f"captioner.model: folder {name} does not exist; give a folder that holds config.json "
            "and weights, or a hub name such as HuggingFaceTB/SmolVLM-256M-Instruct"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"captioner.model: folder {name} has no config.json; save the model and its processor "
            "there with save_pretrained"
        )


def _captions(answer: Answer | Failure) -> tuple[list[str], Failure | None]:
    if isinstance(answer, str):
        return [], answer
    fault = output_fault(answer.text)
    if fault is not None:
        return [], fault
    sentences = split_sentences(answer.text, answer.finished)
    return sentences, None if sentences else "degenerate"


def _one(
    run: Callable[[Sequence[int]], list[Answer]], index: int, failures: list[Exception]
) -> Answer | Failure:
    try:
        return run([index])[0]
    except Exception as error:
        return _failure(error, failures)


def _failure(error: Exception, failures: list[Exception]) -> Failure:
    if _out_of_memory(error):
        _release_memory()
        return "out_of_memory"
    log.warning("captioning one image failed: %s: %s", type(error).__name__, error)
    failures.append(error)
    return "model_failed"


def _out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def _release_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _decode(data: bytes) -> Any | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _seed(text: str) -> int:
    # 32 bits: torch's CPU generator silently ignores higher ones.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
