"""Captions that belong to the page and not to the image.

Two signs: wording ("buy now", "image not available") and recurrence (one caption on very many
different images). Wording is a measure of one caption; recurrence needs the whole corpus, so it is
counted per normalised caption (`caption_key`) and judged in `verdicts`.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from pipeline.filters.config import RepeatConfig

# Phrases that say something about a page, a shop or a missing file wherever they stand. Words that
# can also describe a picture ("sale", "logo", "download", "menu") are left out on purpose.
_ANYWHERE = (
    r"buy (it )?now|shop now|order (now|online|today)|add to (cart|bag|basket|wish\s?list)",
    r"free (worldwide )?(shipping|delivery)|fast shipping|money[- ]back guarantee",
    r"out of stock|sold out|in stock|best prices?|low(est)? prices?",
    r"click (here|to (enlarge|zoom|view|see|play|open|download)|(on )?(the )?image)",
    r"(tap|hover|roll over) to (enlarge|zoom|view)|view (larger|full[- ]size|bigger|all|more)",
    r"(image|photo|picture|preview|thumbnail) (is )?(currently )?(not (available|found)|unavailable"
    r"|coming soon|missing)",
    r"no (image|photo|picture|preview|thumbnail)s? (available|found|yet|provided)",
    r"(image|photo|picture) has no (description|caption)|please wait",
    r"(royalty[- ]free|stock) (photo|image|picture|vector|illustration|video)s?",
    r"stock (photography|footage)",
    r"all rights reserved|subject to copyright|privacy policy",
    r"terms (of (use|service)|and conditions)",
    r"cookie (policy|settings)|copyright (©\s?)?\d{4}|(©|\(c\))\s?\d{4}",
    r"free (download|vector|printable|clip\s?art|wallpaper)s?|download (now|free|for free|pdf)",
    r"(hd|4k|desktop|mobile|iphone) wallpapers?|wallpapers? hd",
    r"sign (up|in) (now|here|for|to)|log\s?in to|subscribe (now|to|for)|our newsletter",
    r"(follow|like|find|visit) us on|share (this )?on (facebook|twitter|pinterest|linkedin|x)",
    r"(pin|tweet) (it|this)|read (more|the full (story|article))|learn more|see more",
    r"back to (top|home(page)?)|(next|previous) (page|post|article|slide)",
    r"related (posts?|articles?|products?)|you may also like|customers also",
    r"enable javascript|your browser does not support|page not found|error 40[34]",
    r"powered by (wordpress|shopify|blogger|wix)|skip to (main )?content",
    r"(product|item) (code|number|no\.?|id)\s?[:#]|sku\s?[:#]|isbn\s?[:#]?\s?\d",
)

# Words that stand for an image when they are all there is, numbered or not.
_ALONE = (
    r"image|photo|picture|pic|img|thumbnail|thumb|preview|placeholder|avatar|icon|logo|banner"
    r"|header|slide|gallery|screenshot|untitled|default|loading|null|none|undefined|n/a|alt"
    r"|(image )?alt (text|image)|(profile|cover) (picture|photo|image)|(user|author) avatar"
    r"|(site|company|brand|store) logo|(featured|main|product|hero|background) (image|photo)"
    r"|advertisement|spacer|no (description|caption)|description|enlarge|zoom|play|video|close"
    r"|menu|search|home",
)


def _compile(phrases: tuple[str, ...], template: str) -> re.Pattern[str]:
    # A space in a phrase stands for any white space; groups need not be captured.
    joined = "|".join(phrases).replace(" ", r"\s+")
    return re.compile(template % re.sub(r"(?<!\\)\((?!\?)", "(?:", joined), re.IGNORECASE)


# What follows a phrase must not continue its last word; a phrase that ends in a sign needs no end.
_ANYWHERE_PATTERN = _compile(_ANYWHERE, r"(?<!\w)(?:%s)(?:(?<!\w)|(?!\w))")
_ALONE_PATTERN = _compile(
    _ALONE, r"\W*(?:the\s+)?(?:%s)(?:\s+(?:image|icon))?(?:\s*\#?\s?\d{1,4})?\W*"
)


def has_boilerplate(text: str) -> bool:
    """Return whether a caption has wording of web pages; never raises."""
    return bool(_ANYWHERE_PATTERN.search(text) or _ALONE_PATTERN.fullmatch(text))


def images_per_caption(
    keys: npt.NDArray[np.uint64], images: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return on how many distinct images (m,) each caption of a corpus stands.

    `keys` (m,) are equal for captions that count as one (`CaptionMeasures.caption_key`), `images`
    (m,) number the image of each. Counts of parts cannot be added when an image occurs in two
    parts, so give it the captions of all parts.
    """
    order = np.lexsort((images, keys))
    new_key = np.diff(keys[order], prepend=np.uint64(0)) != 0
    new_image = new_key | (np.diff(images[order], prepend=-1) != 0)
    new_key[:1] = True
    number = np.cumsum(new_key) - 1
    counts = np.bincount(number[new_image], minlength=1)
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = counts[number]
    return found


def repeat_limit(total_images: int, config: RepeatConfig) -> float:
    """Return the number of images above which a caption is boilerplate.

    ALIGN (Jia et al. 2021, section 3) drops alt texts shared by more than 10 of its 1.8 billion
    images. That number alone would be wrong here: in a small or composed world right captions
    recur ("a red square"), and a share alone would be wrong for the web, where the commonest
    boilerplate is on far less than 1% of images. So the limit grows with the corpus between the
    two absolute numbers: max_share x images, but at least `min_repeats` and at most `max_repeats`.
    """
    if config.max_repeats is None:
        return float("inf")
    return float(min(max(config.min_repeats, config.max_share * total_images), config.max_repeats))
