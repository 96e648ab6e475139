"""Verdicts: measures and thresholds in, the first reason to drop out. Never touches an image.

A verdict is a code: 0 to keep, else the place of the reason in its closed list, counted from 1, so
that the verdicts of a hundred million rows are a hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters.boilerplate import repeat_limit
from pipeline.filters.config import FilterConfig
from pipeline.filters.reasons import CAPTION_REASONS, IMAGE_REASONS

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.floating]


def image_codes(table: pa.Table, config: FilterConfig, by_url: pa.Array | None = None) -> Codes:
    """Return the first of `IMAGE_REASONS` that applies to each row (n,), as codes.

    `table` has the columns of `IMAGE_MEASURES`, and `uid` if uids are blocked. `by_url` (n,) of
    string is `blocked_host`, `blocked_url` or null. Null measures of a decoded image fail nothing.
    """
    rules = config.image
    error = table["decode_error"]
    width, height = _numbers(table, "width"), _numbers(table, "height")
    shorter, longer = np.fmin(width, height), np.fmax(width, height)
    # The limit may be lower than the one the image was measured under.
    too_many = _mask(pc.equal(error, "too_many_pixels")) | (width * height > rules.max_pixels)
    failed = {
        "blocked_uid": _blocked(table, config),
        "blocked_host": _is(by_url, "blocked_host", len(table)),
        "blocked_url": _is(by_url, "blocked_url", len(table)),
        "undecodable": _mask(pc.is_valid(error)) & ~too_many,
        "too_many_pixels": too_many,
        "animated": _mask(table["animated"]) & rules.drop_animated,
        "too_few_pixels": _below(width * height, rules.min_pixels),
        "too_small": _below(shorter, rules.min_side),
        "too_elongated": _above(longer / np.fmax(shorter, 1), rules.max_aspect),
        "blank": _below(_numbers(table, "contrast"), rules.min_contrast),
        "low_entropy": _below(_numbers(table, "entropy"), rules.min_entropy),
        "grey": _above(_numbers(table, "grey_share"), rules.max_grey_share),
        "blurry": _below(_numbers(table, "sharpness"), rules.min_sharpness),
    }
    return _first(IMAGE_REASONS, failed, len(table))


def caption_codes(table: pa.Table, config: FilterConfig, blocked: Mask | None = None) -> Codes:
    """Return the first of `CAPTION_REASONS` that applies to each caption (n,), as codes.

    `table` has the columns of `CAPTION_MEASURES`. `blocked` (n,) says which captions hold a word of
    the blocklist. What the corpus says of a caption is added by `with_repeats`.
    """
    rules = config.caption
    characters, words = _numbers(table, "characters"), _numbers(table, "words")
    never = np.zeros(len(table), dtype=bool)
    failed = {
        "empty": characters == 0,
        "blocked_word": never if blocked is None else blocked,
        "bad_encoding": _mask(table["bad_encoding"]) & rules.drop_bad_encoding,
        "url": _mask(table["url_like"]) & rules.drop_urls,
        "filename": _mask(table["filename_like"]) & rules.drop_filenames,
        "contact": _mask(table["contact_like"]) & rules.drop_contacts,
        "keywords": _above(_numbers(table, "keyword_share"), rules.max_keyword_share),
        "boilerplate": _mask(table["boilerplate"]) & rules.drop_boilerplate,
        "too_few_words": _below(words, rules.min_words),
        "too_short": _below(characters, rules.min_characters),
        "too_long": _above(characters, rules.max_characters),
        "symbols": _above(_numbers(table, "symbol_share"), rules.max_symbol_share),
        "repetitive": _above(_numbers(table, "repetition"), rules.max_repetition),
        "not_english": _below(_numbers(table, "english_score"), rules.min_english),
        "few_nouns": _below(_numbers(table, "noun_share"), rules.min_noun_share),
        "few_verbs": _below(_numbers(table, "verb_share"), rules.min_verb_share),
        "many_names": _above(_numbers(table, "proper_noun_share"), rules.max_proper_noun_share),
        "repeated": never,
    }
    return _first(CAPTION_REASONS, failed, len(table))


def with_repeats(
    codes: Codes, images: npt.NDArray[np.int64], total_images: int, config: FilterConfig
) -> Codes:
    """Return the codes with `repeated` where a caption that passes stands on too many images.

    `images` (n,) says on how many distinct images of the corpus each caption stands, `total_images`
    how many images there are.
    """
    repeated = images > repeat_limit(total_images, config.caption.repeats)
    code = code_of(CAPTION_REASONS, "repeated")
    return np.where((codes == 0) & repeated, code, codes).astype(np.uint8)


def image_reasons(table: pa.Table, config: FilterConfig) -> pa.Array:
    """Return the first of `IMAGE_REASONS` that applies to each row (n,) of string; null = keep."""
    return reason_array(image_codes(table, config), list(IMAGE_REASONS))


def caption_reasons(
    table: pa.Table,
    config: FilterConfig,
    images: npt.NDArray[np.int64] | None = None,
    total_images: int = 0,
) -> pa.Array:
    """Return the first of `CAPTION_REASONS` that applies to each row (n,) of string; null = keep.

    `images` and `total_images` are those of `with_repeats`; without them none is `repeated`.
    """
    codes = caption_codes(table, config)
    if images is not None:
        codes = with_repeats(codes, images, total_images, config)
    return reason_array(codes, list(CAPTION_REASONS))


def code_of(reasons: Iterable[str], reason: str) -> int:
    """Return the code of a reason of a closed list."""
    return list(reasons).index(reason) + 1


def reason_array(codes: npt.NDArray[np.integer], reasons: Sequence[str]) -> pa.Array:
    """Return codes (n,) as their reasons, of string; null where the code is 0."""
    return pa.array([None, *reasons], pa.string()).take(pa.array(codes))


def _first(order: Iterable[str], failed: dict[str, Mask], count: int) -> Codes:
    codes = np.zeros(count, dtype=np.uint8)
    reasons = list(order)
    for number in range(len(reasons), 0, -1):
        codes[failed[reasons[number - 1]]] = number
    return codes


def _blocked(table: pa.Table, config: FilterConfig) -> Mask:
    uids = config.block.entries("uids")
    if not uids:
        return np.zeros(len(table), dtype=bool)
    return _mask(pc.is_in(table["uid"], value_set=pa.array(uids, pa.string())))


def _is(reasons: pa.Array | None, reason: str, count: int) -> Mask:
    return np.zeros(count, dtype=bool) if reasons is None else _mask(pc.equal(reasons, reason))


# A limit is rounded to the precision of the values, so that a share of exactly 1/5, stored in 32
# bits, is not more than 0.2. (That is what NumPy makes of a Python number beside an array.)


def _below(values: Numbers, limit: float | None) -> Mask:
    # A comparison with NaN, which stands for null, is false; so is one with a filter that is off.
    return values < (np.nan if limit is None else limit)


def _above(values: Numbers, limit: float | None) -> Mask:
    return values > (np.nan if limit is None else limit)


def _numbers(table: pa.Table, name: str) -> Numbers:
    """Return a column of float32 as such, others as float64, exact up to 2^53; NaN for null."""
    kind = pa.float32() if pa.types.is_float32(table[name].type) else pa.float64()
    return np.asarray(table[name].cast(kind).to_numpy())


def _mask(column: pa.Array | pa.ChunkedArray) -> Mask:
    flags = pa.chunked_array(pc.fill_null(column, False))
    return np.asarray(flags.to_numpy(), dtype=bool)
