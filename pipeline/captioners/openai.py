"""The `openai` captioner: any server with OpenAI's chat-completions API and images.

aiohttp and not requests or httpx: its timeout covers a whole exchange, so that a server that drips
a byte a second, headers included, cannot hold a request for ever; theirs bound one socket
operation. It is among the declared dependencies, and one thread holds hundreds of requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.captioners.answers import Answer, Answers
from pipeline.captioners.openai_client import ChatClient, Failed, Failure
from pipeline.captioners.openai_image import data_url
from pipeline.captioners.prompted import Failures, PromptedCaptioner, PromptedConfig
from pipeline.captioners.request import CaptionRequest
from pipeline.settings import PACE, ConfigError

log = logging.getLogger(__name__)

#: So many images in a row without an answer are a broken set-up and not bad images.
MANY = 20
_GRACE_S = 5.0  # for what is in flight when a call is given up
_PASSING_OUTAGE: tuple[Failure, ...] = ("connection_failed", "rate_limited")
_OWN_FIELDS = {"model", "messages", "stream", "n", "max_tokens", "temperature", "top_p", "seed"}


class OpenAIConfig(PromptedConfig):
    """A model behind an OpenAI-compatible server, such as vLLM or SGLang."""

    kind: Literal["openai"] = Field(
        default="openai", description="caption with an OpenAI-compatible server"
    )
    name: str = Field(
        default="openai",
        pattern=r"^[a-z0-9_-]+$",
        description="what its captions' source begins with; tell two models of one run apart",
    )
    base_url: str = Field(
        description="the server up to and with /v1, such as http://gpu-box:8000/v1",
        json_schema_extra=PACE,
    )
    model: str = Field(description="the model's name as the server knows it (GET /v1/models)")
    api_key_env: str | None = Field(
        default=None,
        description="name of the environment variable that holds the API key, on every worker; "
        "null sends none",
        json_schema_extra=PACE,
    )
    max_side: int | None = Field(
        default=None, ge=16, le=8192, description="shrink images whose longer side is more; null "
        "sends them as stored [px]"
    )  # fmt: skip
    max_tokens: int | None = Field(
        default=192, ge=1, le=32768, description="most tokens written per image and prompt; null "
        "leaves it to the server and extra_body [tokens]"
    )  # fmt: skip
    temperature: float | None = Field(
        default=0.0, ge=0, le=2, description="of sampling, 0 takes the likeliest token; null "
        "leaves it to the server [ratio]"
    )  # fmt: skip
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="sample from the likeliest tokens that sum to this; "
        "null leaves it to the server [share]"
    )  # fmt: skip
    seed: int | None = Field(
        default=None, ge=0, description="seed of sampling, where the server has one; null sends "
        "none"
    )  # fmt: skip
    extra_body: dict[str, Any] = Field(
        default={},
        description="further fields of the request, such as {top_k: 20}; no secrets, it is stored",
    )
    concurrency: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="requests in flight per worker [requests]",
        json_schema_extra=PACE,
    )
    retries: int = Field(
        default=5,
        ge=0,
        le=20,
        description="further tries after 429, 5xx, a timeout, a lost connection or a malformed "
        "answer, with exponential backoff and Retry-After; a 429 or 503 does not count while the "
        "server answers other requests",
        json_schema_extra=PACE,
    )
    timeout_s: float = Field(
        default=120, gt=0, description="longest time for one request [s]", json_schema_extra=PACE
    )
    image_timeout_s: float = Field(
        default=600,
        gt=0,
        description="longest time for one image, all prompts, tries and waits together [s]",
        json_schema_extra=PACE,
    )

    @model_validator(mode="after")
    def _sendable(self) -> OpenAIConfig:
        # Neither message repeats the value: a key or password may be in the wrong place.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError(
                "api_key_env: must be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY, and not the key itself"
            )
        if fault := _url_fault(self.base_url):
            raise ValueError(f"base_url: {fault}; give it as http://host:8000/v1")
        if taken := sorted(_OWN_FIELDS & set(self.extra_body)):
            raise ValueError(f"extra_body: {', '.join(taken)} cannot be set there")
        return self


class OpenAICaptioner(PromptedCaptioner):
    """Captioner over a chat-completions server; see `Failure` for the closed list of errors.

    A failed request is tried again as `retries` says; what still fails is that image's failure, in
    no store, so that a later run asks again. `caption` raises instead where the set-up is broken:
    `ConfigError` for a refused key, an unknown model or a redirect, and `RuntimeError` if nothing
    was ever answered for the part by the time that `MANY` images have failed or all have, or if
    `MANY` in a row find the server gone or saying 429. What was answered until then is kept.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        super().__init__(config.name, config)
        self.config = config

    def _ask(self, requests: Sequence[CaptionRequest], answers: Answers) -> Failures:
        key = read_key(self.config)
        return asyncio.run(_Call(self, ChatClient(self.config, key), answers).run(requests))


class _Call:
    """One call: a bounded number of images asked about at a time, each prompt after the other."""

    def __init__(self, captioner: OpenAICaptioner, client: ChatClient, answers: Answers) -> None:
        self.config, self.questions = captioner.config, captioner.questions
        self.client, self.answers = client, answers
        self.failures: Failures = {}
        self.reasons: Counter[str] = Counter()
        self.in_a_row = 0
        self.last = ""
        self.stopped = False

    async def run(self, requests: Sequence[CaptionRequest]) -> Failures:
        waiting = iter(requests)
        async with self.client:
            count = min(self.config.concurrency, len(requests))
            workers = [asyncio.create_task(self._work(waiting)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                # What is in flight may be paid for already.
                self.stopped = True
                await asyncio.wait(workers, timeout=_GRACE_S)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if self.reasons:
            log.warning("%s: %s; the last: %s", self.config.name, dict(self.reasons), self.last)
        if len({uid for uid, _ in self.failures}) > 1:
            self._raise_if_never_answered()
        return self.failures

    async def _work(self, waiting: Iterator[CaptionRequest]) -> None:
        while not self.stopped and (request := next(waiting, None)) is not None:
            await self._image(request)

    async def _image(self, request: CaptionRequest) -> None:
        deadline = asyncio.get_running_loop().time() + self.config.image_timeout_s
        image = await asyncio.to_thread(data_url, request.image, self.config.max_side)
        for prompt_id, question in self.questions.items():
            if self.answers.get(request.uid, question) is not None:
                continue
            if image is None:
                self.failures[request.uid, prompt_id] = "decode_failed"
                continue
            prompt = self.config.prompts[prompt_id]
            outcome = await self.client.ask(image, prompt, deadline, self.answers.costs)
            if isinstance(outcome, Answer):
                self.answers.put(request.uid, question, outcome)
                self.in_a_row = 0
            else:
                self._failed(request.uid, prompt_id, outcome)

    def _failed(self, uid: str, prompt_id: str, failed: Failed) -> None:
        self.failures[uid, prompt_id] = failed.reason
        self.reasons[failed.reason] += 1
        self.last = failed.detail
        if failed.reason in _PASSING_OUTAGE:
            self.in_a_row += 1
            if self.in_a_row >= max(MANY, self.config.concurrency):
                raise self._outage()
        if sum(self.reasons.values()) >= max(MANY, self.config.concurrency):
            self._raise_if_never_answered()

    def _raise_if_never_answered(self) -> None:
        if self.reasons and not any(map(self.answers.knows, self.questions.values())):
            raise self._outage()

    def _outage(self) -> RuntimeError:
        return RuntimeError(
            f"captioner {self.config.name}: {self.config.base_url} gives no captions "
            f"({dict(self.reasons)}; the last: {self.last}); see to the server and run again"
        )


def check(config: OpenAIConfig) -> None:
    """Raise `ConfigError` if the key is not there; the server is not asked."""
    read_key(config)


def read_key(config: OpenAIConfig) -> str | None:
    """Return the API key from this process's environment, None if the server needs none."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"captioner.api_key_env: the environment variable {config.api_key_env} is not set; "
            "export it here and on every worker"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(
            f"captioner.api_key_env: {config.api_key_env} holds spaces or other characters that "
            "no key has"
        )
    return key


def _url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "no URL"
    if re.search(r"[\x00-\x20\x7f]", url) or parts.scheme not in ("http", "https"):
        return "no http(s) URL"
    if not parts.hostname:
        return "it has no host"
    if parts.username is not None or parts.password is not None:
        return "no user or password in it; the key goes where api_key_env says"
    if parts.query or parts.fragment:
        return "no ? or # in it"
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return "leave /chat/completions away"
    return None
