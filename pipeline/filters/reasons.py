"""Why images and captions are dropped: the closed lists, in the order in which they are tried.

The first reason that applies is the one recorded, so the order is part of the funnel's meaning:
broken before unsuitable, cheap and certain before judged.
"""

from __future__ import annotations

from typing import Final

#: Reasons of `verdicts.image_reasons`.
IMAGE_REASONS: Final = {
    "blocked_uid": "the image's uid is on the blocklist: a takedown",
    "blocked_host": "the image came from a host on the blocklist",
    "blocked_url": "the image's URL is on the blocklist",
    "undecodable": "the bytes are no readable JPEG, PNG or WebP image",
    "too_many_pixels": "the header claims more pixels than is safe to decode",
    "animated": "the file has more than one frame",
    "too_few_pixels": "width times height is too little",
    "too_elongated": "the longer side is too long for the shorter one",
    "too_small": "the shorter side is too short",
    "blank": "the image is one colour, or nearly",
    "low_entropy": "the image has hardly more than one level of grey",
    "grey": "the image has too little colour",
    "blurry": "the image has hardly any edges",
}

#: Those that are of the place where one copy of the image was found, and not of the image.
PLACE_REASONS: Final = ("blocked_host", "blocked_url")

#: Reasons of `verdicts.caption_reasons`.
CAPTION_REASONS: Final = {
    "empty": "the caption has no visible text",
    "blocked_word": "the caption holds a word of the blocklist",
    "bad_encoding": "the caption has broken characters",
    "url": "the caption is mostly a web address",
    "filename": "the caption is the name of a file",
    "contact": "the caption holds an e-mail address or a telephone number",
    "keywords": "the caption is a list of bare keywords",
    "boilerplate": "the caption has the wording of web pages, such as 'click here'",
    "too_few_words": "the caption has too few words",
    "too_short": "the caption has too few characters",
    "too_long": "the caption has too many characters",
    "symbols": "too much of the caption is neither letters nor digits",
    "repetitive": "the caption says the same words again and again",
    "not_english": "the caption is probably not English",
    "few_nouns": "too few of the caption's words are nouns",
    "few_verbs": "too few of the caption's words are verbs",
    "many_names": "too many of the caption's words are names",
    "repeated": "the caption stands on so many images that it cannot describe them",
}

#: Reasons that only `select`, which sees all parts, can give to an image.
SELECTION_REASONS: Final = {
    "exact_duplicate": "the file is byte for byte one that is judged already",
    "near_duplicate": "the image is a copy of one that is kept",
    "semantic_duplicate": "the image shows the same as one that is kept (SemDeDup)",
    "no_good_caption": "no caption of the image passed (`on_bad_caption: drop_image`)",
}

#: Reasons that `select` and `choose` give to captions which pass by themselves.
POOL_REASONS: Final = {
    "duplicate_text": "the image has this caption, or nearly, already",
    "too_many_captions": "the image has as many alt texts as are kept (`max_per_image`)",
    "image_dropped": "the caption's image is dropped",
}

#: Reasons that `choose` gives to images, from the scores of their captions.
CHOICE_REASONS: Final = {
    "no_caption": "fewer captions are left than `pack.min_captions`",
    "below_top_fraction": "the best caption scores below those of the share that is kept",
    "no_concept": "no caption names a concept (balancing)",
    "balanced_out": "the image's concepts have enough images without it (balancing)",
}

#: Reasons that `choose` gives to captions, from their scores.
SCORE_REASONS: Final = {
    "low_alignment": "the caption's alignment with the image is below the threshold",
    "low_cosine": "the CLIP cosine of caption and image is below the threshold",
    "low_quality": "the caption's quality is below the threshold",
}
