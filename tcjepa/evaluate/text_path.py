"""What is measured of a model's text path, and why it is not where it cannot be."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch

from pipeline.settings import ConfigError
from tcjepa.evaluate.agreement import NoAgreementError, agree
from tcjepa.evaluate.annotations import PLACED_BY, AnnotationError
from tcjepa.evaluate.captioned import CaptionedImages
from tcjepa.evaluate.config import EvaluateConfig
from tcjepa.evaluate.grounding import NoGroundingError, ground
from tcjepa.evaluate.mentions import PLACELESS
from tcjepa.evaluate.report import EvaluationResult
from tcjepa.evaluate.tally import Tally
from tcjepa.masks import MaskConfig
from tcjepa.model.jepa import TCJEPA
from tcjepa.text import TextEncoder

#: Tasks that need captions and a predictor that reads them, unlike those of `runner`.
TEXT_TASKS: Final = ("agreement", "grounding")

Found = tuple[EvaluationResult, dict[str, Tally]]


def with_text_path(
    found: Found,
    model: TCJEPA,
    text: TextEncoder,
    test: CaptionedImages,
    *,
    masks: MaskConfig,
    config: EvaluateConfig,
    device: torch.device,
) -> Found:
    """Return an encoder's result and tallies with the text tasks of its model added.

    `masks` are those it was trained with. A task that cannot be measured leaves a note, broken
    annotations among the reasons. Raises `ConfigError` for what no note can excuse: a model that
    has diverged.
    """
    result, tallies = found
    notes: list[str] = []
    try:
        if "agreement" in config.tasks:
            try:
                agreement, own = agree(model, text, test, masks, device, batch=config.batch)
                result, tallies = dataclasses.replace(result, agreement=agreement), tallies | own
            except NoAgreementError as error:
                notes.append(f"agreement: skipped, {error}")
        if "grounding" in config.tasks:
            try:
                _check_words(model, text)
                grounding, own = ground(model, text, test, device, batch=config.batch)
                result, tallies = dataclasses.replace(result, grounding=grounding), tallies | own
                if lost := grounding.left_out.get(PLACELESS):
                    notes.append(f"grounding: {lost} words name an {PLACELESS}; {PLACED_BY}")
            except (NoGroundingError, AnnotationError) as error:
                notes.append(f"grounding: skipped, {error}")
    except ValueError as error:
        raise ConfigError(f"evaluate: {error}") from error
    return _noted(result, notes), tallies


def without_text_path(found: Found, config: EvaluateConfig, reason: str) -> Found:
    """Return a result and tallies with a note for each text task that is left out."""
    notes = [f"{task}: skipped, {reason}" for task in TEXT_TASKS if task in config.tasks]
    return _noted(found[0], notes), found[1]


def _check_words(model: TCJEPA, text: TextEncoder) -> None:
    conditioning = model.config.text
    if conditioning is None or conditioning.conditioning != "word_attention":
        raise NoGroundingError("the predictor does not attend to words")
    try:
        text.spans_of("a word")
    except ConfigError as error:
        raise NoGroundingError(str(error)) from error


def _noted(result: EvaluationResult, notes: list[str]) -> EvaluationResult:
    return dataclasses.replace(result, notes=(*result.notes, *notes))


__all__ = ["TEXT_TASKS", "Found", "with_text_path", "without_text_path"]
