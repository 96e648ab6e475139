"""Lists that a config names: an entry that could match nothing is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import PipelineConfig
from pipeline.filters.config import FilterConfig
from pipeline.filters.lists import with_lists
from pipeline.run import check
from pipeline.settings import ConfigError, build
from pipeline.sources.build import build_source

UID = "0123456789abcdef" * 2


@pytest.fixture
def images(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    return tmp_path


def checked(images: Path, **filters: Any) -> FilterConfig:
    source = {"kind": "folder", "images": str(images)}
    config = build(PipelineConfig, {"run": "unused", "source": source, "filter": filters})
    check(config, build_source(config.source))
    return with_lists(config.filter)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"uids": [UID.upper()]}, "is no uid: 32 lower-case hex digits"),
        ({"uids": [UID * 2]}, "is no uid"),
        ({"words": ["one two three four five six seven"]}, "more than"),
        ({"hosts": ["https://example.com/"]}, "https://example.com/"),
        ({"urls": ["example.com/a.jpg"]}, "example.com/a.jpg"),
    ],
)
def test_a_blocklists_entry_that_could_match_nothing(
    images: Path, block: dict[str, list[str]], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        checked(images, block=block)


def test_a_concept_that_could_match_nothing(images: Path) -> None:
    with pytest.raises(ConfigError, match="concepts: '!!!' has no word"):
        checked(images, balance={"concepts": ["!!!"]})


def test_entries_that_may_match_pass(images: Path) -> None:
    block = {"uids": [UID], "words": ["shop"], "hosts": ["a.example"], "urls": ["http://b/c"]}
    found = checked(images, block=block, balance={"concepts": ["dog"]})
    assert found.block.model_dump() == block
