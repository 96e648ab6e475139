"""Captioners that prompt a model: what the local and the remote ones share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import Field, model_validator

from pipeline.captioners.answers import Answers, question
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.sentences import distinct, usable_sentences
from pipeline.settings import Settings, effective

_NAME = re.compile(r"[a-z0-9_-]+")
_OF_CAPTIONS = {"name", "prompts", "max_captions"}

#: Why one prompt has no answer for an image, by (uid, prompt id).
Failures = dict[tuple[str, str], str]


class PromptedConfig(Settings):
    """A model and what it is asked."""

    model: str = Field(description="the model that writes captions")
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

    @model_validator(mode="after")
    def _named(self) -> PromptedConfig:
        for name in self.prompts:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"prompts: id {name!r} must be of lower-case letters, digits, - and _"
                )
        if not self.model.strip():
            raise ValueError("model: empty; name the model")
        return self

    def question(self, prompt: str) -> str:
        """Return the name under which answers to a prompt are kept.

        It depends on everything that shapes what the model writes: the model, the prompt, the
        decoding, what is done to the image; not on prompt ids, how many captions are made of the
        answers, or the pace (`settings.PACE`): those change without asking again.
        """
        settings = {k: v for k, v in effective(self).items() if k not in _OF_CAPTIONS}
        return question({**settings, "prompt": prompt})


class PromptedCaptioner(ABC):
    """Captioner that asks each prompt of each image once, and makes sentences of the answers.

    Prompts count in the config's order. An image is a failure only if no prompt gave a caption, and
    then has the reason of the first prompt that failed: `empty_output` (no letter), `refused`,
    `degenerate` (loops only), or one of the subclass's own.
    """

    def __init__(self, name: str, config: PromptedConfig) -> None:
        self.name = name
        self._limit = config.max_captions
        self.questions = {key: config.question(text) for key, text in config.prompts.items()}

    def needs_image(self, uid: str, answers: Answers) -> bool:
        """Return whether some prompt has no answer yet."""
        return any(answers.get(uid, asked) is None for asked in self.questions.values())

    def caption(
        self, requests: Sequence[CaptionRequest], answers: Answers | None = None
    ) -> list[CaptionResult]:
        """Return up to `max_captions` distinct sentences per image, in order of the requests."""
        answers = Answers() if answers is None else answers
        missing = [request for request in requests if self.needs_image(request.uid, answers)]
        answers.costs.reused += sum(
            answers.get(request.uid, asked) is not None
            for request in requests
            for asked in self.questions.values()
        )
        failures = self._ask(missing, answers) if missing else {}
        return [self._result(request.uid, answers, failures) for request in requests]

    @abstractmethod
    def _ask(self, requests: Sequence[CaptionRequest], answers: Answers) -> Failures:
        """Put every answer that is missing into `answers`; return why others are still missing.

        Raises if nothing at all was answered and the fault is plainly the set-up's.
        """

    def _result(self, uid: str, answers: Answers, failures: Failures) -> CaptionResult:
        found: list[tuple[str, str]] = []
        errors: list[str] = []
        for prompt_id, asked in self.questions.items():
            answer = answers.get(uid, asked)
            if answer is None:
                errors.append(failures[uid, prompt_id])
                continue
            sentences, fault = usable_sentences(answer.text, answer.finished)
            if error := answer.fault or fault:
                errors.append(error)
            else:
                found += [(sentence, prompt_id) for sentence in sentences]
        captions = distinct(found, self._limit)
        return CaptionResult(captions, None if captions else errors[0])
