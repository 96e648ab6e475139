import pytest

from pipeline.settings import ConfigError, build, describe
from pipeline.sources.scenes import ScenesConfig


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"captions": {"right": 0.5}}, "captions: the shares sum to 0.95, they must sum to 1"),
        ({"faults": {"not_found": 0.9}}, "faults: the shares sum to 1.09"),
        ({"faults": {"not_found": 0.8}}, "at most 0.9"),
        ({"faults": {"html": -0.1}}, "faults.html"),
        ({"min_side": 200, "max_side": 100}, "min_side 200 is larger than max_side 100"),
        ({"captions": {"wrong": 0.5}}, "captions.wrong: unknown key"),
        ({"port": 0}, "port"),
        ({"shapes": ["star", "hart"]}, "shapes.*'hart' does not exist in this world.*heart"),
        ({"textures": ["plain", "plain"]}, "textures.*listed twice"),
    ],
)
def test_impossible_worlds_are_refused_by_key(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ScenesConfig, data)


def test_every_key_is_described() -> None:
    assert [key for key, _, text in describe(ScenesConfig) if len(text) < 10] == []
