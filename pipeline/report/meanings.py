"""What each reason of the closed lists means, in words."""

from __future__ import annotations

from typing import Final

from pipeline.filters.reasons import (
    CAPTION_REASONS,
    CHOICE_REASONS,
    IMAGE_REASONS,
    POOL_REASONS,
    SCORE_REASONS,
    SELECTION_REASONS,
)
from pipeline.stages.failures import FAILURES

_MEANINGS: Final = {
    "not_needed": "written for an image that was dropped, or said what the image's captions said",
    **CAPTION_REASONS,
    **POOL_REASONS,
    **SCORE_REASONS,
    **IMAGE_REASONS,
    **SELECTION_REASONS,
    **CHOICE_REASONS,
    **{reason: text for reason, (_, text) in FAILURES.items()},
}


def meaning(reason: str) -> str:
    """Return what a reason of the funnel means; empty for one that is on no list."""
    return _MEANINGS.get(reason, "")


def is_takedown(reason: str) -> bool:
    """Return whether what fell to a reason must not be shown: somebody asked for its removal."""
    return reason in {"blocked_uid", "blocked_url", "blocked_host"}


__all__ = ["is_takedown", "meaning"]
