"""Named sets of thresholds: what known data sets were filtered with, as far as it carries over.

A preset fills the keys that a config leaves out, so the resolved config (`<run>/config.yaml`) shows
every number. Broken images and captions without text are dropped by all of them.
"""

from __future__ import annotations

from typing import Any, Final

_OFF: Final[dict[str, Any]] = {
    "image": {
        "min_pixels": None,
        "min_side": None,
        "max_aspect": None,
        "min_contrast": None,
        "min_entropy": None,
        "min_sharpness": None,
        "max_grey_share": None,
        "drop_animated": False,
    },
    "caption": {
        "min_words": None,
        "min_characters": None,
        "max_characters": None,
        "min_english": None,
        "max_symbol_share": None,
        "max_repetition": None,
        "max_keyword_share": None,
        "pool_similarity": None,
        "max_per_image": None,
        "drop_bad_encoding": False,
        "drop_filenames": False,
        "drop_urls": False,
        "drop_contacts": False,
        "drop_boilerplate": False,
        "repeats": {"max_repeats": None},
    },
    "duplicates": {"radius": None},
}


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries joined key by key; `over` wins."""
    found = dict(under)
    for key, value in over.items():
        below = found.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        found[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return found


#: Preset -> what it sets of `FilterConfig`; all else has the defaults.
PRESETS: Final[dict[str, dict[str, Any]]] = {
    # Every filter that can be off is off: "no filtering" of DataComp's tables.
    "none": _OFF,
    # Gadre et al. 2023 (arXiv 2304.14108), "basic filtering": English, more than 2 words and
    # 5 characters, shorter side of 200 px, aspect of 3. An image goes with its caption.
    "datacomp-basic": merged(
        _OFF,
        {
            "image": {"min_side": 200, "max_aspect": 3.0},
            "caption": {"min_words": 3, "min_characters": 6, "min_english": 0.2},
            "on_bad_caption": "drop_image",
        },
    ),
    # Schuhmann et al. 2022 (arXiv 2210.08402): texts of 5 characters, English, CLIP ViT-B/32
    # cosine of 0.28. Their floor of 5 kB a file is not here: stored images are encoded again.
    "laion": merged(
        _OFF,
        {
            "caption": {"min_characters": 5, "min_english": 0.2},
            "scores": {"min_cosine": 0.28},
            "on_bad_caption": "drop_image",
        },
    ),
    # Our defaults, tightened, with ALIGN's rule of ten images (Jia et al. 2021) and DataComp's 30%.
    "strict": {
        "image": {"min_sharpness": 50.0, "min_entropy": 2.0},
        "caption": {
            "min_words": 5,
            "max_repetition": 0.3,
            "max_symbol_share": 0.15,
            "min_english": 0.5,
            "max_keyword_share": 0.5,
            "repeats": {"max_repeats": 10, "min_repeats": 10},
        },
        "duplicates": {"radius": 6},
        "scores": {"top_fraction": 0.3},
        "on_bad_caption": "drop_image",
    },
}
