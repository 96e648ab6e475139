"""Measures by name: how they read, their thresholds in the config, and the reason they decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import SCORES

IMAGE, CAPTION, SCORE = "image", "caption", "score"

#: Columns of the filter table that are keys or raw signatures, not measures to look at.
_NOT_SHOWN: Final = {"row", "width", "height", "phash", "caption_key"}

#: name -> (label, unit) where the column's name does not say enough.
_LABELS: Final = {
    "shorter_side": ("Shorter side", "px"),
    "aspect": ("Longer over shorter side", ""),
    "pixels": ("Pixels", "px"),
    "contrast": ("Contrast", "levels of 255"),
    "sharpness": ("Sharpness", "levels²"),
    "entropy": ("Entropy", "bits"),
    "english_score": ("Probability of English", ""),
    "language_score": ("Certainty of the language", ""),
    "symbol_share": ("Share of symbols", ""),
    "repetition": ("Share of repeated word pairs", ""),
    "grey_share": ("Share of pixels without colour", ""),
    "keyword_share": ("Share of bare keywords", ""),
    "cosine": ("CLIP cosine", ""),
}

#: name -> keys of its lower and upper threshold, where they are not `min_<name>`, `max_<name>`.
_KEYS: Final = {
    "shorter_side": ("min_side", None),
    "english_score": ("min_english", None),
}

#: reason -> the measure that decided it.
_DECIDED_BY: Final = {
    "too_small": "shorter_side",
    "too_elongated": "aspect",
    "too_many_pixels": "pixels",
    "blank": "contrast",
    "blurry": "sharpness",
    "too_few_words": "words",
    "too_short": "characters",
    "too_long": "characters",
    "symbols": "symbol_share",
    "repetitive": "repetition",
    "not_english": "english_score",
    "too_few_pixels": "pixels",
    "low_entropy": "entropy",
    "grey": "grey_share",
    "keywords": "keyword_share",
    "few_nouns": "noun_share",
    "few_verbs": "verb_share",
    "many_names": "proper_noun_share",
    "low_alignment": "alignment",
    "low_cosine": "cosine",
    "low_quality": "quality",
}


@dataclass(frozen=True)
class Threshold:
    """A limit from the config: values on its wrong side are dropped."""

    key: str
    value: float
    is_minimum: bool

    def __str__(self) -> str:
        return f"{'at least' if self.is_minimum else 'at most'} {number(self.value)}"


@dataclass(frozen=True)
class Measure:
    """One column to draw, of images (`image`), alt texts (`caption`) or scored captions."""

    name: str
    level: str

    @property
    def label(self) -> str:
        """Return the measure's name in words."""
        return _LABELS.get(self.name, (self.name.replace("_", " ").capitalize(), ""))[0]

    @property
    def unit(self) -> str:
        """Return the measure's unit; empty for counts and shares."""
        return _LABELS.get(self.name, ("", ""))[1]

    @property
    def is_share(self) -> bool:
        """Return whether values lie in [0, 1]."""
        if self.level == SCORE:
            return self.name in SCORES
        return self.name.endswith(("_share", "_score", "repetition"))

    def thresholds(self, config: dict[str, Any]) -> list[Threshold]:
        """Return the thresholds that a run's config (as plain data) sets for this measure."""
        names = _KEYS.get(self.name, (f"min_{self.name}", f"max_{self.name}"))
        section = "scores" if self.level == SCORE else self.level
        values = (config.get("filter") or {}).get(section) or {}
        found = []
        for name, is_minimum in zip(names, (True, False), strict=True):
            value = values.get(name) if name else None
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found.append(Threshold(f"filter.{section}.{name}", float(value), is_minimum))
        return found


def image_measures(table: pa.Table) -> Iterator[tuple[Measure, npt.NDArray[np.float64]]]:
    """Yield each image measure of a filter table with its values (n,), NaN for null."""
    if {"width", "height"} <= set(table.column_names):
        width, height = floats(table["width"]), floats(table["height"])
        shorter = np.fmin(width, height)
        yield Measure("shorter_side", IMAGE), shorter
        yield Measure("aspect", IMAGE), np.fmax(width, height) / np.fmax(shorter, 1)
    for field in table.schema:
        if field.name not in _NOT_SHOWN and _is_number(field.type):
            yield Measure(field.name, IMAGE), floats(table[field.name])


def caption_measures(captions: pa.StructArray) -> Iterator[tuple[Measure, Any]]:
    """Yield each measure of a filter table's alt texts with its values (m,), NaN for null."""
    for field in captions.type:
        if field.name not in _NOT_SHOWN and _is_number(field.type):
            yield Measure(field.name, CAPTION), floats(captions.field(field.name))


def score_measures(captions: pa.StructArray) -> Iterator[tuple[Measure, Any]]:
    """Yield each score of a score table's captions with its values (m,), NaN for null."""
    for field in captions.type:
        if _is_number(field.type):
            yield Measure(field.name, SCORE), floats(captions.field(field.name))


def deciding(reason: str, level: str) -> Measure | None:
    """Return the measure whose threshold gives a reason; None if no number decides it."""
    name = _DECIDED_BY.get(reason)
    return Measure(name, level) if name else None


def number(value: float) -> str:
    """Return a number as people write it: 3 significant digits, thousands apart."""
    if value == round(value) and abs(value) < 1e15:
        return f"{round(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def floats(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Return a number column as float64 (n,), NaN for null."""
    values = pc.cast(column, pa.float64(), safe=False)
    if isinstance(values, pa.ChunkedArray):
        return np.asarray(values.to_numpy(), dtype=np.float64)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


__all__ = [
    "CAPTION",
    "IMAGE",
    "SCORE",
    "Measure",
    "Threshold",
    "caption_measures",
    "deciding",
    "floats",
    "image_measures",
    "number",
    "score_measures",
]
