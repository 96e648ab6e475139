"""Thresholds of the filters. Any threshold that may be null is off when it is null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.filters.balance import BalanceConfig
from pipeline.filters.blocklist import BlockConfig
from pipeline.filters.presets import PRESETS, merged
from pipeline.settings import Settings


class ImageFilterConfig(Settings):
    """Which images are kept, by what they measure."""

    max_pixels: int = Field(
        default=89_478_485,
        gt=0,
        description="refuse to decode images whose header claims more (Pillow's bomb limit) [px]",
    )
    min_pixels: int | None = Field(
        default=None, ge=1, description="width times height, at least; off by default [px]"
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
    min_entropy: float | None = Field(
        default=0.5,
        ge=0,
        le=8,
        description="Shannon entropy of the grey levels at 256 px, at least; catches blank images "
        "with a thin frame or a few letters, which have contrast (ours, measured: "
        "docs/decisions.md) [bits]",
    )
    max_grey_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of pixels without colour, at most; off by default, since black and "
        "white photographs and drawings on white are good images (ours)",
    )
    drop_animated: bool = Field(
        default=True,
        description="drop animated GIF, WebP and PNG: their captions speak of more than the first "
        "frame, all that is stored (ours)",
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

    similarity: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="captions whose sets of word pairs have this Jaccard similarity count as one "
        "caption; null counts captions that are equal but for case, digits and punctuation. Off "
        "by default: where captions are short or composed, near means another thing said (ours)",
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
        default=0.2,
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
    drop_contacts: bool = Field(
        default=True, description="drop captions with an e-mail address or a phone number (ours)"
    )
    max_keyword_share: float | None = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of comma-separated items that are bare keywords, at most, in captions "
        "of three items or more (ours, measured: docs/decisions.md)",
    )
    word_classes: bool = Field(
        default=False,
        description="measure the three shares below, which takes about twice as long as all "
        "other measures of a caption (Data-Juicer measures them with spaCy)",
    )
    min_noun_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of words that are nouns, at least; 0.01 asks for one (Data-Juicer "
        "text_entity_dependency_filter)",
    )
    min_verb_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of words that are verbs, at least; 0.01 asks for one (Data-Juicer "
        "text_action_filter)",
    )
    max_proper_noun_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of words that are names, at most; names say little of what is seen "
        "(ours)",
    )
    pool_similarity: float | None = Field(
        default=0.8,
        gt=0,
        le=1,
        description="of an image's captions whose sets of word pairs have this Jaccard "
        "similarity the first is kept; null keeps all that differ in a letter or digit (ours)",
    )
    max_per_image: int | None = Field(
        default=64,
        ge=1,
        description="alt texts kept of an image, at most, its own row's first; null keeps those of "
        "all its copies, and a logo has thousands (ours)",
    )
    repeats: RepeatConfig = RepeatConfig()

    @model_validator(mode="after")
    def _classes_measured(self) -> CaptionFilterConfig:
        for name in ("min_noun_share", "min_verb_share", "max_proper_noun_share"):
            if getattr(self, name) is not None and not self.word_classes:
                raise ValueError(f"{name} needs word_classes: true, which has the words classed")
        return self


class SemanticConfig(Settings):
    """When two images show the same thing: see `semantic` (SemDeDup)."""

    threshold: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="cosine of two images' embeddings, at least (the rule is SemDeDup's, Abbas et "
        "al. 2023; the number is ours and depends on the model)",
    )
    cluster_size: int = Field(
        default=1000,
        ge=2,
        le=20_000,
        description="images are compared within k-means clusters of at most so many; cost and "
        "recall grow with it (SemDeDup: 50,000 clusters of 440 million) [images]",
    )
    seed: int = Field(default=0, ge=0, description="of the k-means starting points")


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

    semantic: SemanticConfig | None = Field(
        default=None,
        description="also drop images that show the same; null: off. Needs image embeddings",
    )


class ScoreFilterConfig(Settings):
    """Which captions and images are kept by their scores; a caption without a score fails none."""

    min_alignment: float | None = Field(
        default=None, ge=0, le=1, description="alignment of a caption with its image, at least"
    )
    min_cosine: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="CLIP cosine of a caption and its image, at least (LAION: 0.28 with ViT-B/32)",
    )
    min_quality: float | None = Field(
        default=None, ge=0, le=1, description="quality of a caption, at least (ours)"
    )
    top_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the train images kept, those whose best caption scores highest "
        "(DataComp's CLIP baseline: 0.3)",
    )
    top_by: Literal["alignment", "cosine", "quality"] = Field(
        default="quality", description="the score that top_fraction ranks by"
    )

    def needed(self) -> dict[str, str]:
        """Return the scores that these rules read: name -> the key that needs it."""
        rules = {"alignment": self.min_alignment, "cosine": self.min_cosine}
        rules["quality"] = self.min_quality
        found = {name: f"min_{name}" for name, least in rules.items() if least is not None}
        if self.top_fraction is not None:
            found.setdefault(self.top_by, "top_fraction")
        return found


class FilterConfig(Settings):
    """All filters of a run."""

    preset: Literal["datacomp-basic", "laion", "strict", "none"] | None = Field(
        default=None,
        description="a named set of thresholds; keys given beside it win. null: the defaults here",
    )
    image: ImageFilterConfig = ImageFilterConfig()
    caption: CaptionFilterConfig = CaptionFilterConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    on_bad_caption: Literal["drop_caption", "drop_image"] = Field(
        default="drop_caption",
        description="an image without a good caption is kept for re-captioning, or dropped as "
        "DataComp does",
    )
    scores: ScoreFilterConfig = ScoreFilterConfig()
    balance: BalanceConfig | None = Field(
        default=None, description="keep at most so many images per concept; null: off"
    )
    block: BlockConfig = BlockConfig()

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """Put the preset's values where the config gives none."""
        preset = given.get("preset") if isinstance(given, dict) else None
        if isinstance(preset, str) and preset in PRESETS:
            return merged(PRESETS[preset], given)
        return given
