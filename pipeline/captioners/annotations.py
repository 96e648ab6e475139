"""Captions written from structured annotations, without looking at the image.

With an error rate it stands in for captioners of any strength: class names, boxes or scene graphs
in, sentences out, a known share of them false.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pipeline.captioners.answers import Answers
from pipeline.captioners.claims import claims, falsify
from pipeline.captioners.request import CaptionRequest, CaptionResult
from pipeline.captioners.scene_graph import parse, sparser
from pipeline.captioners.wording import sentence
from pipeline.settings import Settings


class AnnotationsConfig(Settings):
    """Sentences from the `annotations` column."""

    kind: Literal["annotations"] = Field(
        "annotations", description="write sentences from the `annotations` column"
    )
    name: str = Field(
        "annotations",
        pattern=r"^[a-z0-9_-]+$",
        description="what its captions' source begins with; tell two of one run apart",
    )
    max_captions: int = Field(8, ge=1, le=64, description="most captions per image [captions]")
    error_rate: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="probability that a sentence has a wrong attribute, object, relation, count or "
        "place, or an invented object [share]",
    )
    omission_rate: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="probability that an attribute of an object goes unsaid in all captions of its "
        "image [share]",
    )
    seed: int = Field(0, ge=0, description="seed of the choice of sentences, errors and omissions")


class AnnotationsCaptioner:
    """Captioner that reads `annotations` alone; deterministic by (seed, uid, annotations).

    A prompt id is the form of the sentence: object, attribute, relation, position, background,
    count or summary. Errors: `no_annotations` (null, or nothing in it to tell), `bad_annotations`
    (malformed).

    Rates are nested: a claim that is falsified at a low rate is falsified the same way at a higher
    one, so that captioners of different strength differ in their errors only; and what goes unsaid
    at a low rate goes unsaid at a higher one.
    """

    def __init__(self, config: AnnotationsConfig) -> None:
        self.name = config.name
        self.config = config

    def needs_image(self, uid: str, answers: Answers) -> bool:
        """Return False: what is told is in the annotations."""
        return False

    def caption(
        self, requests: Sequence[CaptionRequest], answers: Answers | None = None
    ) -> list[CaptionResult]:
        """Return one result per request, in order; there are no answers to keep."""
        return [self._caption(request) for request in requests]

    def _caption(self, request: CaptionRequest) -> CaptionResult:
        if request.annotations is None:
            return CaptionResult([], "no_annotations")
        try:
            graph = parse(request.annotations)
        except ValueError:
            return CaptionResult([], "bad_annotations")
        told = sparser(graph, self.config.omission_rate, self._stream(request.uid, "omissions"))
        said: dict[str, str] = {}  # text -> form
        for number, claim in enumerate(claims(told, self._stream(request.uid, "claims"))):
            if len(said) == self.config.max_captions:
                break
            draw = self._stream(request.uid, f"claim {number}")
            wrong = draw.random() < self.config.error_rate
            stated = falsify(claim, graph, draw) if wrong else claim
            said.setdefault(sentence(stated, draw), stated.form)
        return CaptionResult(list(said.items()), None if said else "no_annotations")

    def _stream(self, uid: str, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{uid}/{purpose}")
