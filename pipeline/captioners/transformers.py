"""The `transformers` captioner: any Hugging Face model that turns an image into text."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.captioners.answers import Answer, Answers
from pipeline.captioners.loaded import drop_other_models, forget_models, load_model
from pipeline.captioners.prompted import Failures, PromptedCaptioner, PromptedConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.captioners.vision_language import (
    Decoding,
    ImageBatch,
    VisionLanguageModel,
    first_line,
)
from pipeline.device_errors import (
    DeviceLostError,
    device_lost,
    out_of_memory,
    release_memory,
)
from pipeline.settings import PACE, ConfigError

log = logging.getLogger(__name__)

#: Why an image has no caption. `model_failed` is any other error of the model on this one image.
Failure = Literal[
    "decode_failed", "empty_output", "refused", "degenerate", "out_of_memory", "model_failed"
]


class TransformersConfig(PromptedConfig):
    """A Hugging Face image-to-text model, by hub name or local folder."""

    kind: Literal["transformers"] = Field(
        default="transformers", description="caption with a Hugging Face model"
    )
    name: str = Field(
        default="transformers",
        pattern=r"^[a-z0-9_-]+$",
        description="what its captions' source begins with; tell two models of one run apart",
    )
    model: str = Field(
        description="hub name such as HuggingFaceTB/SmolVLM-256M-Instruct, or a local folder"
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub model; null is its main branch"
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="images per forward pass; halved on OOM [images]",
        json_schema_extra=PACE,
    )
    max_new_tokens: int = Field(
        default=192, ge=1, le=4096, description="most tokens written per image and prompt [tokens]"
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="weights and activations; auto is bf16 on GPUs that have it"
    )
    device: str = Field(
        default="auto",
        description="torch device; auto is cuda if there is one, else cpu",
        json_schema_extra=PACE,
    )
    do_sample: bool = Field(default=False, description="sample tokens instead of the likeliest")
    temperature: float = Field(
        default=1.0, gt=0, le=10, description="of sampling; needs do_sample [ratio]"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that sum to this "
        "(nucleus, Holtzman et al. 2020), 1 is all; needs do_sample [share]"
    )  # fmt: skip
    num_beams: int = Field(default=1, ge=1, le=32, description="beam search width [beams]")
    length_penalty: float = Field(
        default=1.0, ge=-5, le=5, description="exponent of the length by which a beam's "
        "log-probability is divided: more than 1 favours long ones; needs num_beams > 1"
    )  # fmt: skip
    repetition_penalty: float = Field(
        default=1.0, ge=1.0, le=2.0, description="of tokens already written, 1 is none [ratio]"
    )
    seed: int = Field(default=0, ge=0, description="seed of sampling, for each image on its own")

    @model_validator(mode="after")
    def _runnable(self) -> TransformersConfig:
        for key in ("temperature", "top_p"):
            if getattr(self, key) != 1.0 and not self.do_sample:
                raise ValueError(f"{key} has no effect without sampling; set do_sample: true")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample samples one answer per image; set num_beams: 1")
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise ValueError("length_penalty has no effect without beams; set num_beams: 2 or more")
        if self.device != "auto" and not re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", self.device):
            raise ValueError(f"device: got {self.device!r}, allowed: auto, cpu, mps, cuda, cuda:0")
        return self


@dataclass(frozen=True)
class _Asked:
    """The images of a batch that one prompt is put to, and what the model takes of them."""

    prompt_id: str
    requests: list[CaptionRequest]
    batch: ImageBatch
    inputs: dict[str, Any] | None  # None where preparing them failed: tried again one by one


@dataclass
class _Run:
    """One call: what is asked of which model, and what came of it."""

    model: VisionLanguageModel
    answers: Answers
    size: int  # images per batch; halves when memory runs out
    failures: Failures
    errors: list[Exception]


class TransformersCaptioner(PromptedCaptioner):
    """Captioner over a Hugging Face model; see `Failure` for the closed list of errors.

    Creating one is cheap and checks what can be checked without loading: it raises `ConfigError`
    if torch, transformers or Pillow is missing, or if `model` names a folder that is not there.
    Weights are loaded at the first `caption`, once per process (see `hold_models`), and only the
    config is pickled.

    `caption` raises `ConfigError` if the model cannot be loaded or takes no prompt, and the
    model's own error if it fails on every one of several images and never answered for any other
    of the part: that is a broken set-up, not a bad image. It raises `DeviceLostError` if the GPU
    fails for good, for this process: its images are not to blame, nor are those of later parts.

    An answer does not depend on the batch it was written in, sampled or not, up to the rounding of
    the model's own sums: in float32 that changes nothing in practice, in bfloat16 it may flip a
    choice between two nearly equal tokens. Batches follow the order of the requests.
    """

    def __init__(self, config: TransformersConfig) -> None:
        check(config)
        super().__init__(config.name, config)
        self.config = config
        self._decoding = Decoding(**{f.name: getattr(config, f.name) for f in fields(Decoding)})

    def _ask(self, requests: Sequence[CaptionRequest], answers: Answers) -> Failures:
        try:
            return self._write_all(requests, answers)
        except Exception as error:
            if not device_lost(error):
                raise
            forget_models()
            raise DeviceLostError(
                f"the device of {self.config.model} is lost to this process, which has to be "
                f"restarted ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _write_all(self, requests: Sequence[CaptionRequest], answers: Answers) -> Failures:
        config = self.config
        model = load_model(config.model, config.dtype, config.device, config.revision)
        run = _Run(model, answers, config.batch_size, {}, [])
        # Images are decoded and laid out for the model while it writes about those before.
        with ThreadPoolExecutor(1) as ahead:
            coming: Future[list[_Asked]] | None = None
            start = 0
            while coming is not None or start < len(requests):
                ready = coming
                coming, end = None, start + run.size
                if start < len(requests):
                    coming = ahead.submit(self._prepare, run, requests[start:end])
                    start = end
                for asked in ready.result() if ready is not None else ():
                    self._generate(run, asked)
        several = len({uid for uid, _ in run.failures}) > 1
        if run.errors and several and not any(map(answers.knows, self.questions.values())):
            raise run.errors[0]
        return run.failures

    def _prepare(self, run: _Run, requests: Sequence[CaptionRequest]) -> list[_Asked]:
        """Decode the images of a batch, and lay out what each prompt still lacks."""
        pictures: dict[str, Any] = {}
        for request in requests:
            picture = _decode(request.image)
            if picture is None:
                failed = dict.fromkeys(((request.uid, p) for p in self.questions), "decode_failed")
                run.failures.update(failed)
            else:
                pictures[request.uid] = picture
        asked = []
        for prompt_id, question in self.questions.items():
            lacking = [
                request
                for request in requests
                if request.uid in pictures and run.answers.get(request.uid, question) is None
            ]
            if lacking:
                batch = self._batch(prompt_id, lacking, [pictures[r.uid] for r in lacking])
                asked.append(_Asked(prompt_id, lacking, batch, _inputs(run.model, batch)))
        return asked

    def _batch(
        self, prompt_id: str, requests: Sequence[CaptionRequest], pictures: list[Any]
    ) -> ImageBatch:
        prompt = self.config.prompts[prompt_id]
        seeds = [_seed(f"{self.config.seed}/{prompt}/{request.uid}") for request in requests]
        return ImageBatch(pictures, prompt, seeds)

    def _generate(self, run: _Run, asked: _Asked) -> None:
        """Answer one prompt for a batch: in pieces if memory runs out, singly for other errors."""
        waiting = [asked]
        while waiting:
            piece = waiting.pop(0)
            count = len(piece.requests)
            if count > run.size:
                waiting = _cut(piece, run.size) + waiting
                continue
            try:
                found = self._write(run, piece)
            except ConfigError:
                raise
            except Exception as error:
                if device_lost(error):
                    raise
                memory = out_of_memory(error)
                if count == 1 and memory and drop_other_models(run.model):
                    # Models of other captioners were in the way of this one: it starts over.
                    run.size = self.config.batch_size
                    waiting = [piece, *waiting]
                elif count == 1:
                    _record(run, piece, "out_of_memory" if memory else "model_failed", error)
                elif memory:
                    # Memory is short for the rest of the call too.
                    run.size = count // 2
                    log.warning("out of memory: going on with batches of %d images", run.size)
                    waiting = _cut(piece, run.size) + waiting
                else:
                    waiting = _cut(piece, 1) + waiting
            else:
                for request, answer in zip(piece.requests, found, strict=True):
                    run.answers.put(request.uid, self.questions[piece.prompt_id], answer)
                continue
            # Not while the error is handled: its traceback holds on to the memory.
            if memory:
                release_memory()

    def _write(self, run: _Run, piece: _Asked) -> list[Answer]:
        inputs = run.model.prepare(piece.batch) if piece.inputs is None else piece.inputs
        started = time.perf_counter()
        try:
            return run.model.generate(piece.batch, inputs, self._decoding)
        finally:
            seconds = time.perf_counter() - started
            run.answers.costs.busy_s += seconds
            run.answers.costs.gpu_s += seconds if run.model.device.type == "cuda" else 0.0


def _inputs(model: VisionLanguageModel, batch: ImageBatch) -> dict[str, Any] | None:
    try:
        return model.prepare(batch)
    except ConfigError:
        raise
    except Exception as error:
        log.warning("a batch could not be prepared as one: %s: %s", type(error).__name__, error)
        return None


def _cut(asked: _Asked, size: int) -> list[_Asked]:
    """Return a batch in pieces of at most `size` images, to be prepared anew."""
    pieces = []
    for start in range(0, len(asked.requests), size):
        part, batch = slice(start, start + size), asked.batch
        smaller = ImageBatch(batch.pictures[part], batch.prompt, batch.seeds[part])
        pieces.append(_Asked(asked.prompt_id, asked.requests[part], smaller, None))
    return pieces


def _record(run: _Run, asked: _Asked, failure: Failure, error: Exception) -> None:
    (request,) = asked.requests
    log.warning("captioning %s failed: %s: %s", request.uid, type(error).__name__, error)
    run.failures[request.uid, asked.prompt_id] = failure
    if not run.errors:
        run.errors.append(error.with_traceback(None))


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
