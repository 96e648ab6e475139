"""Config of the embedded world: how many scenes, how bad their captions and URLs are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.settings import Settings
from pipeline.sources.scenes.vocabulary import SHAPES, SIZES, TEXTURES

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CaptionShares(Settings):
    """Shares of the kinds of alt text among train rows; they sum to 1.

    A field's name is the value of the `caption_fault` column.
    """

    right: Share = Field(0.55, description="alt texts that say only true things [share]")
    partial: Share = Field(0.10, description="one thing said is false, the rest true [share]")
    swapped: Share = Field(0.10, description="the alt text of another scene [share]")
    boilerplate: Share = Field(0.06, description="phrases such as 'Buy now' [share]")
    filename: Share = Field(0.05, description="file names [share]")
    foreign: Share = Field(0.05, description="true, but not in English [share]")
    short: Share = Field(0.03, description="one or two words [share]")
    keywords: Share = Field(0.03, description="comma-separated keywords [share]")
    empty: Share = Field(0.03, description="no alt text at all [share]")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = math.fsum(self.model_dump().values())
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares sum to {total:.6g}, they must sum to 1")
        return self


class UrlFaultShares(Settings):
    """Shares of misbehaving URLs among train rows; the remainder behaves.

    A field's name is the value of the `url_fault` column, which is "none" for the remainder.
    """

    not_found: Share = Field(0.02, description="answer 404 [share]")
    gone: Share = Field(0.01, description="answer 410 [share]")
    forbidden: Share = Field(0.01, description="answer 403 [share]")
    flaky: Share = Field(0.02, description="answer 500 once, then fine [share]")
    redirect: Share = Field(0.02, description="answer 302 to the image [share]")
    slow: Share = Field(0.01, description="answer after source.slow_seconds [share]")
    html: Share = Field(0.01, description="answer 200 with an HTML page [share]")
    truncated: Share = Field(0.01, description="JPEG cut short [share]")
    tiny: Share = Field(0.01, description="image of 8 to 24 px [share]")
    extreme_aspect: Share = Field(0.01, description="image stretched to 5:1 or more [share]")
    blank: Share = Field(0.01, description="image of one colour [share]")
    duplicate: Share = Field(0.03, description="same bytes as another URL [share]")
    near_duplicate: Share = Field(
        0.03, description="another URL's image, resized and re-encoded [share]"
    )
    noai: Share = Field(0.01, description="image with the header X-Robots-Tag: noai [share]")

    @model_validator(mode="after")
    def _leave_a_remainder(self) -> Self:
        total = math.fsum(self.model_dump().values())
        if total > 1.0 + 1e-6:
            raise ValueError(f"the shares sum to {total:.6g}, they must sum to at most 1")
        if self.duplicate + self.near_duplicate > 0 and total > 0.9 + 1e-6:
            raise ValueError(
                f"the shares sum to {total:.6g}; with duplicates they must sum to at most 0.9, "
                "so that there are sound URLs to duplicate"
            )
        return self


class ScenesConfig(Settings):
    """The embedded world: small composed scenes with known truth, served over loopback HTTP."""

    kind: Literal["scenes"] = Field("scenes", description="generate and serve the embedded world")
    train: int = Field(6000, ge=0, description="train scenes [images]")
    test: int = Field(1500, ge=0, description="held-out labelled scenes, all sound [images]")
    seed: int = Field(0, ge=0, description="seed of scenes, captions and faults")
    port: int = Field(
        8765, ge=1, le=65535, description="loopback port; part of every URL, so of the shards"
    )
    min_side: int = Field(96, ge=32, le=512, description="smallest image side [px]")
    max_side: int = Field(320, ge=32, le=512, description="largest image side [px]")
    max_objects: int = Field(5, ge=1, le=5, description="most objects of a scene [objects]")
    shapes: list[str] = Field(
        list(SHAPES), min_length=2, description="what objects can be: of the eight, at least two"
    )
    sizes: list[str] = Field(
        list(SIZES), min_length=1, description="how large they can be: of small, medium, large"
    )
    textures: list[str] = Field(
        list(TEXTURES), min_length=1, description="how they can be painted: of the six"
    )
    captions: CaptionShares = Field(
        default_factory=CaptionShares, description="kinds of alt text in the train split"
    )
    faults: UrlFaultShares = Field(
        default_factory=UrlFaultShares, description="misbehaving URLs in the train split"
    )
    slow_seconds: float = Field(0.2, ge=0.0, le=600.0, description="delay of a slow URL [s]")

    @field_validator("shapes", "sizes", "textures")
    @classmethod
    def _of_the_vocabulary(cls, value: list[str], info: ValidationInfo) -> list[str]:
        vocabulary: dict[str, Iterable[str]] = {
            "shapes": SHAPES, "sizes": SIZES, "textures": TEXTURES
        }  # fmt: skip
        known = list(vocabulary[str(info.field_name)])
        for name in value:
            if name not in known:
                raise ValueError(
                    f"{name!r} does not exist in this world; known: {', '.join(known)}"
                )
        if len(set(value)) < len(value):
            raise ValueError("a name is listed twice")
        return value

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(
                f"min_side {self.min_side} is larger than max_side {self.max_side}; lower it"
            )
        return self
