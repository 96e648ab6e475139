"""What kinds of noise do to words, counted on captions whose words are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.settings import ConfigError
from tcjepa.ablate.noise_reach import KINDS, main, reach
from tests.tcjepa.shards import caption, write_shards

EXPECTED = {  # changed, words kept, foreign [%]
    "derangement": (100, 25, 100),
    "truncate": (100, 50, 0),
    "swap_nouns": (0, 100, 0),  # no nouns are marked in these captions
}


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Return shards of captions of four words, of which images share one."""
    write_shards(
        tmp_path / "shards", 12, lambda n: [caption(f"shared a{n} b{n} c{n}") for _ in range(2)]
    )
    return str(tmp_path / "shards")


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_done_is_what_is_counted(shards: str, kind: str) -> None:
    found = reach(shards, kind, images=100, captions=4, strength=0.5)
    assert tuple(found.values()) == pytest.approx(EXPECTED[kind])


def test_a_shuffled_caption_keeps_its_words(shards: str) -> None:
    found = reach(shards, "shuffle_words", images=12, captions=1, strength=1.0)
    assert found["changed"] > 50
    assert (found["words kept"], found["foreign"]) == (100, 0)


def test_dropped_words_are_about_as_many_as_asked_for(shards: str) -> None:
    found = reach(shards, "drop_words", images=12, captions=2, strength=0.5)
    assert 35 < found["words kept"] < 70 and found["foreign"] == 0


def test_the_command_counts_every_kind(shards: str, tmp_path: Path) -> None:
    file = tmp_path / "reach.json"
    assert main([shards, "--images", "5", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert tuple(content["kinds"]) == KINDS
    assert content["kinds"]["derangement"]["text changed, %"]["value"] == 100
    assert content["command"].startswith("python -m tcjepa.ablate.noise_reach ")


def test_captions_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "bare", 3, lambda _: [])
    with pytest.raises(ConfigError, match="has a caption"):
        reach(str(tmp_path / "bare"), "typos", images=3, captions=4, strength=0.5)
    assert main([str(tmp_path / "bare")]) == 2
    assert "has a caption" in capsys.readouterr().err
