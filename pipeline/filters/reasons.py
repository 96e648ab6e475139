"""Why images and captions are dropped: the closed lists, in the order in which they are tried.

The first reason that applies is the one recorded, so the order is part of the funnel's meaning:
broken before unsuitable, cheap and certain before judged.
"""

from __future__ import annotations

from typing import Final

#: Reasons of `verdicts.image_reasons`.
IMAGE_REASONS: Final = {
    "undecodable": "the bytes are no readable JPEG, PNG or WebP image",
    "too_many_pixels": "the header claims more pixels than is safe to decode",
    "too_small": "the shorter side is too short",
    "too_elongated": "the longer side is too long for the shorter one",
    "blank": "the image is one colour, or nearly",
    "blurry": "the image has hardly any edges",
}

#: Reasons of `verdicts.caption_reasons`.
CAPTION_REASONS: Final = {
    "empty": "the caption has no visible text",
    "bad_encoding": "the caption has broken characters",
    "url": "the caption is mostly a web address",
    "filename": "the caption is the name of a file",
    "boilerplate": "the caption has the wording of web pages, such as 'click here'",
    "too_few_words": "the caption has too few words",
    "too_short": "the caption has too few characters",
    "too_long": "the caption has too many characters",
    "symbols": "too much of the caption is neither letters nor digits",
    "repetitive": "the caption says the same words again and again",
    "not_english": "the caption is probably not English",
    "repeated": "the caption stands on so many images that it cannot describe them",
}

#: Reasons that only the selection over all parts can give to an image.
SELECTION_REASONS: Final = {
    "near_duplicate": "the image is a copy of one that is kept",
    "no_good_caption": "no caption of the image passed (`on_bad_caption: drop_image`)",
}
