"""Thresholds of the filters. Any threshold that may be null is off when it is null."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.settings import Settings


class ImageFilterConfig(Settings):
    """Which images are kept, by what they measure."""

    max_pixels: int = Field(
        default=89_478_485,
        gt=0,
        description="refuse to decode images whose header claims more (Pillow's bomb limit) [px]",
    )
    min_side: int | None = Field(
        default=200, ge=1, description="shorter side, at least (DataComp basic) [px]"
    )
    max_aspect: float | None = Field(
        default=3.0, ge=1, description="longer over shorter side, at most (DataComp basic)"
    )
    min_contrast: float | None = Field(
        default=2.0,
        ge=0,
        le=128,
        description="largest standard deviation of a colour channel, at least; "
        "catches blank images (ours) [levels of 255]",
    )
    min_sharpness: float | None = Field(
        default=None,
        ge=0,
        description="variance of the Laplacian at 256 px, at least; off by default, since smooth "
        "drawings score like blurred photos (ours) [levels²]",
    )


class RepeatConfig(Settings):
    """When a caption that recurs on many images is boilerplate: see `boilerplate.repeat_limit`."""

    max_repeats: int | None = Field(
        default=1000,
        ge=1,
        description="a caption on more images than this is boilerplate in a corpus of any size; "
        "null turns all three keys off; 10 is ALIGN's rule (ours) [images]",
    )
    max_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="… and in a smaller corpus from this share of its images on (ours)",
    )
    min_repeats: int = Field(
        default=10, ge=1, description="… but never up to this number (ALIGN) [images]"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RepeatConfig:
        if self.max_repeats is not None and self.min_repeats > self.max_repeats:
            raise ValueError(
                f"min_repeats ({self.min_repeats}) must not exceed max_repeats "
                f"({self.max_repeats}); lower it as well"
            )
        return self


class CaptionFilterConfig(Settings):
    """Which captions are kept, by what they measure."""

    min_words: int | None = Field(
        default=3, ge=1, description="words, at least (DataComp basic: more than 2)"
    )
    min_characters: int | None = Field(
        default=6, ge=1, description="characters, at least (DataComp basic: more than 5)"
    )
    max_characters: int | None = Field(
        default=1000, ge=1, description="characters, at most; longer ones are pages (ours)"
    )
    min_english: float | None = Field(
        default=0.25,
        ge=0,
        le=1,
        description="probability of English, at least (DataComp basic: English; the number is "
        "measured, see docs/decisions.md)",
    )
    max_symbol_share: float | None = Field(
        default=0.25,
        ge=0,
        le=1,
        description="share of characters that are no letter, digit or space, at most (Data-Juicer "
        "special_characters_filter, which counts digits and spaces too)",
    )
    max_repetition: float | None = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of word pairs that occurred before in the caption, at most (after "
        "Data-Juicer word_repetition_filter)",
    )
    drop_bad_encoding: bool = Field(
        default=True, description="drop captions with broken characters (ours)"
    )
    drop_filenames: bool = Field(default=True, description="drop captions like IMG_0042.jpg (ours)")
    drop_urls: bool = Field(default=True, description="drop captions that are mostly a URL (ours)")
    drop_boilerplate: bool = Field(
        default=True, description="drop captions with page wording such as 'click here' (ours)"
    )
    repeats: RepeatConfig = RepeatConfig()


class DuplicateConfig(Settings):
    """When two images are copies of one another: see `duplicates`."""

    radius: int | None = Field(
        default=4,
        ge=0,
        le=16,
        description="perceptual hashes differ in at most so many of 64 bits; null keeps all "
        "copies (ours, measured: docs/decisions.md) [bits]",
    )
    colour_tolerance: int | None = Field(
        default=8,
        ge=0,
        le=255,
        description="mean colours of the 4x4 cells differ by at most so much; null compares "
        "hashes alone (ours, measured: docs/decisions.md) [levels of 255]",
    )


class FilterConfig(Settings):
    """All filters of a run."""

    image: ImageFilterConfig = ImageFilterConfig()
    caption: CaptionFilterConfig = CaptionFilterConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    on_bad_caption: Literal["drop_caption", "drop_image"] = Field(
        default="drop_caption",
        description="an image without a good caption is kept for re-captioning, or dropped as "
        "DataComp does",
    )
