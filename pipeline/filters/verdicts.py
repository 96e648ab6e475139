"""Verdicts: measures and thresholds in, the first reason to drop out. Never touches an image."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.boilerplate import repeat_limit
from pipeline.filters.config import FilterConfig
from pipeline.filters.reasons import CAPTION_REASONS, IMAGE_REASONS

Mask = npt.NDArray[np.bool_]


def image_reasons(table: pa.Table, config: FilterConfig) -> pa.Array:
    """Return the first of `IMAGE_REASONS` that applies to each row (n,) of string; null = keep.

    `table` has the columns of `IMAGE_MEASURES`. Null measures of a decoded image fail nothing.
    """
    rules = config.image
    error = table["decode_error"]
    width, height = _numbers(table, "width"), _numbers(table, "height")
    shorter, longer = np.fmin(width, height), np.fmax(width, height)
    # The limit may be lower than the one the image was measured under.
    too_many = _mask(pc.equal(error, "too_many_pixels")) | (width * height > rules.max_pixels)
    failed = {
        "undecodable": _mask(pc.is_valid(error)) & ~too_many,
        "too_many_pixels": too_many,
        "too_small": _below(shorter, rules.min_side),
        "too_elongated": _above(longer / np.fmax(shorter, 1), rules.max_aspect),
        "blank": _below(_numbers(table, "contrast"), rules.min_contrast),
        "blurry": _below(_numbers(table, "sharpness"), rules.min_sharpness),
    }
    return _first(IMAGE_REASONS, failed, len(table))


def caption_reasons(
    table: pa.Table,
    config: FilterConfig,
    images: npt.NDArray[np.int64] | None = None,
    total_images: int = 0,
) -> pa.Array:
    """Return the first of `CAPTION_REASONS` that applies to each row (n,) of string; null = keep.

    `table` has the columns of `CAPTION_MEASURES`. `images` (n,) says on how many distinct images
    of the corpus each caption stands (`boilerplate.images_per_caption`), `total_images` how many
    images there are; without them no caption is `repeated`.
    """
    rules = config.caption
    characters, words = _numbers(table, "characters"), _numbers(table, "words")
    never = np.zeros(len(table), dtype=bool)
    failed = {
        "empty": characters == 0,
        "bad_encoding": _mask(table["bad_encoding"]) & rules.drop_bad_encoding,
        "url": _mask(table["url_like"]) & rules.drop_urls,
        "filename": _mask(table["filename_like"]) & rules.drop_filenames,
        "boilerplate": _mask(table["boilerplate"]) & rules.drop_boilerplate,
        "too_few_words": _below(words, rules.min_words),
        "too_short": _below(characters, rules.min_characters),
        "too_long": _above(characters, rules.max_characters),
        "symbols": _above(_numbers(table, "symbol_share"), rules.max_symbol_share),
        "repetitive": _above(_numbers(table, "repetition"), rules.max_repetition),
        "not_english": _below(_numbers(table, "english_score"), rules.min_english),
        "repeated": never if images is None else images > repeat_limit(total_images, rules.repeats),
    }
    return _first(CAPTION_REASONS, failed, len(table))


def _first(order: Iterable[str], failed: dict[str, Mask], count: int) -> pa.Array:
    reasons = np.full(count, None, dtype=object)
    for reason in reversed(list(order)):
        reasons[failed[reason]] = reason
    return pa.array(reasons, type=pa.string())


def _below(values: npt.NDArray[np.float64], limit: float | None) -> Mask:
    # A comparison with NaN, which stands for null, is false; so is one with a filter that is off.
    return values < (np.nan if limit is None else limit)


def _above(values: npt.NDArray[np.float64], limit: float | None) -> Mask:
    return values > (np.nan if limit is None else limit)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """Return a column as float64, NaN for null; exact up to 2^53."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _mask(column: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=bool)
