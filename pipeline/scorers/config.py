"""The `score` section of a run's config: which scores are computed and how they combine.

Imports nothing heavy, so that `--help` and config checks stay fast. Every score lies in [0, 1],
higher is better.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.schema import SCORES
from pipeline.scorers.embedding import EncoderConfig
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


class ClipAlignmentConfig(Settings):
    """`alignment: clip`: the dual encoder of the config's `embed` section compares them."""

    kind: Literal["clip"] = Field(
        default="clip",
        description="cosine of image and caption by the model of `embed`; CLIPScore (Hessel et "
        "al. 2021) and the filters of LAION and DataComp",
    )


AlignmentConfig = Annotated[
    LinearAlignmentConfig | ClipAlignmentConfig, Field(discriminator="kind")
]


class WordAgreementConfig(Settings):
    """`agreement: words`: things and attributes that an image's other captions name too."""

    kind: Literal["words"] = Field(
        default="words",
        description="compare what captions name: things, attributes and which belong together",
    )


class EncoderAgreementConfig(EncoderConfig):
    """`agreement: encoder`: cosine of captions by a Hugging Face text encoder, mean-pooled."""

    kind: Literal["encoder"] = Field(
        default="encoder", description="compare captions by a text encoder (Sentence-BERT, 2019)"
    )
    model: str = Field(
        description="hub name such as sentence-transformers/all-MiniLM-L6-v2, or a local folder"
    )


AgreementConfig = Annotated[
    WordAgreementConfig | EncoderAgreementConfig, Field(discriminator="kind")
]


class QualityConfig(Settings):
    """`quality`: weighted geometric mean of the other scores, so that one near zero shows.

    The defaults are measured: docs/decisions.md, "Caption scores". A weight of 0 leaves a score
    out. A score that was not computed is left out and the other weights are renormalised.
    """

    wording: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="weight of the wording score: it says nothing of the image [ratio]",
    )
    language: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="weight of the language score, which is unsure of short captions [ratio]",
    )
    alignment: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the alignment score; the best single filter in DataComp [ratio]",
    )
    agreement: float = Field(
        default=1.5,
        ge=0,
        allow_inf_nan=False,
        description="weight of the agreement score, which sees single false words [ratio]",
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
    alignment: AlignmentConfig | None = Field(
        default=LinearAlignmentConfig(),
        description="image-text alignment: linear, clip; null leaves it out",
    )
    agreement: AgreementConfig | None = Field(
        default=WordAgreementConfig(),
        description="agreement with the image's other captions: words, encoder; null leaves it out",
    )
    fit_images: int = Field(
        default=200_000,
        ge=1,
        le=10_000_000,
        description="most images that alignment and agreement are fitted on, drawn by uid; 200,000 "
        "take minutes however large the run is [images]",
    )
    quality: QualityConfig = Field(
        default=QualityConfig(), description="how the scores combine into quality"
    )


__all__ = [
    "AgreementConfig",
    "AlignmentConfig",
    "ClipAlignmentConfig",
    "EncoderAgreementConfig",
    "LanguageScoreConfig",
    "LinearAlignmentConfig",
    "QualityConfig",
    "ScoreConfig",
    "WordAgreementConfig",
]
