"""X-Robots-Tag in all the spellings that servers use, at the end and on the way there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.opener import PolicyOpener
from pipeline.fetch.opt_out import opted_out
from tests.pipeline.fetch.web import HostileWeb, answers

Make = Callable[..., PolicyOpener]
DIRECTIVES = FetchConfig().respect_opt_out


@pytest.mark.parametrize(
    ("value", "ours"),
    [
        ("noai", True),
        ("NoAI , nofollow", True),
        ("none", True),
        ("noai, unavailable_after: 25 Jun 2010", True),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", True),
        ("unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noai", True),
        ("noai, max-snippet:0", True),
        ("max-image-preview: large, noai", True),
        ("tcjepa: noai", True),
        ("TCJEPA: NOAI", True),
        ("tcjepa/1.0: noai", True),
        ("tcjepa : noai", True),
        ("tcjepa:noai", True),
        ("nofollow, tcjepa: noai", True),
        ("otherbot: nofollow, tcjepa: noai", True),
        ("otherbot: noindex tcjepa: noindex", True),
        ("*: noai", True),
        ("otherbot: nofollow, *: noai", True),
        ("noai noimageai", True),
        ("nofollow; noai", True),
        ("noai;", True),
        ("noindex:", True),
        ('"noai"', True),
        ("", False),
        (":,:,", False),
        ("all", False),
        ("nofollow", False),
        ("notranslate, noarchive", False),
        ("max-image-preview: none", False),
        ("max-image-preview: none, max-snippet: -1", False),
        ("otherbot: noai", False),
        ("otherbot: nofollow, noai", False),
        ("otherbot: none", False),
        ("nofollow, otherbot: noai", False),
        ("tcjepa-news: noai", False),
        ("noaim", False),
    ],
)
def test_a_header_forbids_use(value: str, ours: bool) -> None:
    assert opted_out(["nofollow", value], "tcjepa", DIRECTIVES) == ours
    assert opted_out([value], "TcJepa", DIRECTIVES) == ours
    assert not opted_out([value], "tcjepa", [])


def test_which_directives_count_is_configured() -> None:
    assert opted_out(["none"], "tcjepa", ["nofollow"])
    assert not opted_out(["none"], "tcjepa", ["noai"])
    assert opted_out(["noarchive"], None, ["NoArchive"])
    assert not opted_out(["tcjepa: noai"], None, DIRECTIVES)


@pytest.mark.parametrize("at", ["/", "/end"])
def test_it_is_asked_at_every_step(at: str, hostile: HostileWeb, opener: Make) -> None:
    tag = "X-Robots-Tag: nofollow, tcjepa: noai"
    moved = [tag] if at == "/" else []
    hostile.serve("/", answers(b"", "Location: /end", *moved, status="302 Found"))
    hostile.serve("/end", answers(b"image", *([tag] if at == "/end" else [])))
    with pytest.raises(FetchError, match="opted_out"):
        opener().open(hostile.base + "/")
    assert hostile.asked("/end") == (at == "/end")
    assert opener(respect_opt_out=[]).open(hostile.base + "/").read() == b"image"
