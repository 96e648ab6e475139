"""What a captioner is asked and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.captioners.answers import Answers


@dataclass(frozen=True)
class CaptionRequest:
    """One image to caption: its encoded bytes, and its `annotations` JSON if the source has it.

    `image` is empty where the captioner's `needs_image` said no.
    """

    uid: str
    image: bytes
    annotations: str | None


@dataclass(frozen=True)
class CaptionResult:
    """Captions of one image as (text, prompt id), or the reason why there are none.

    `error` is null exactly when there are captions; each captioner documents its closed list.
    """

    captions: list[tuple[str, str]]
    error: str | None


class Captioner(Protocol):
    """A source of captions; `Caption.source` becomes "<name>:<prompt id>"."""

    name: str

    def needs_image(self, uid: str, answers: Answers) -> bool:
        """Return whether `caption` will look at the image, given the answers known already."""
        ...

    def caption(
        self, requests: Sequence[CaptionRequest], answers: Answers | None = None
    ) -> list[CaptionResult]:
        """Return one result per request, in order. A failed image is a result, not a raise.

        `answers` remembers what models said: what it knows is not asked again, and what is said
        now goes into it at once. Without it everything is asked.
        """
        ...
