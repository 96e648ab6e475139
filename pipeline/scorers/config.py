"""The `score` section of a run's config: which scores are computed and how they combine.

Imports nothing heavy, so that `--help` and config checks stay fast. Every score lies in [0, 1],
higher is better.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.schema import SCORES
from pipeline.settings import Settings


class LanguageScoreConfig(Settings):
    """`language`: the probability that a caption is in a wanted language."""

    languages: list[str] = Field(
        default=["en"],
        min_length=1,
        description="wanted languages; DataComp's basic filter keeps English [ISO 639 codes]",
    )

    @model_validator(mode="after")
    def _codes(self) -> LanguageScoreConfig:
        for code in self.languages:
            if len(code) not in (2, 3) or not code.isascii() or not code.islower():
                raise ValueError(
                    f"languages: {code!r} is no ISO 639 code; write two or three lower-case "
                    "letters, such as en"
                )
        return self


class LinearAlignmentConfig(Settings):
    """`alignment: linear`: a cross-modal model fitted on the run's own data, no weights needed."""

    kind: Literal["linear"] = Field(
        default="linear",
        description="how image and caption are compared; regularised CCA (Hardoon et al. 2004)",
    )
    folds: int = Field(
        default=4,
        ge=2,
        le=8,
        description="an image is scored by a model that did not see it [folds, by uid]",
    )
    components: int = Field(
        default=128,
        ge=1,
        le=1024,
        description="canonical components kept at most [components]",
    )
    text_width: int = Field(
        default=1024,
        ge=64,
        le=4096,
        description="caption features: hashed words and word pairs (Weinberger 2009) [features]",
    )


class QualityConfig(Settings):
    """`quality`: weighted geometric mean of the other scores, so that one near zero shows.

    A weight of 0 leaves a score out. A score that was not computed is left out and the other
    weights are renormalised.
    """

    wording: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the wording score [ratio]"
    )
    language: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the language score [ratio]"
    )
    alignment: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the alignment score; the best single filter in DataComp [ratio]",
    )
    agreement: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the agreement score [ratio]"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> QualityConfig:
        if not any(self.weights().values()):
            raise ValueError("all weights are 0; give at least one score a weight above 0")
        return self

    def weights(self) -> dict[str, float]:
        """Return score name -> weight, for every score but `quality` itself."""
        return {name: float(getattr(self, name)) for name in SCORES if name != "quality"}


class ScoreConfig(Settings):
    """The scores of a run. A score set to null (or false) is stored as null."""

    wording: bool = Field(
        default=True,
        description="score length, visual words, complexity and repetition of each caption",
    )
    language: LanguageScoreConfig | None = Field(
        default=LanguageScoreConfig(), description="language score; null leaves it out"
    )
    alignment: LinearAlignmentConfig | None = Field(
        default=LinearAlignmentConfig(), description="image-text alignment; null leaves it out"
    )
    quality: QualityConfig = Field(
        default=QualityConfig(), description="how the scores combine into quality"
    )


__all__ = ["LanguageScoreConfig", "LinearAlignmentConfig", "QualityConfig", "ScoreConfig"]
