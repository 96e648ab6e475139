from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings import ConfigError
from tcjepa.data.captioned import check_captioned
from tcjepa.data.captions import choose, eligible
from tcjepa.data.config import DataConfig
from tcjepa.data.index import ShardIndex
from tests.tcjepa.shards import caption, two_captions, write_shards


def config_of(**keys: Any) -> DataConfig:
    return DataConfig(shards="unused", **keys)


def scored(*qualities: float | None) -> list[Any]:
    return [caption(f"caption {n}", quality=quality) for n, quality in enumerate(qualities)]


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12),
    st.integers(0, 10),
    st.sampled_from(["uniform", "quality"]),
    st.integers(0, 99),
)
def test_laws(qualities: list[float | None], n: int, sampling: str, epoch: int) -> None:
    captions = scored(*qualities)
    config = config_of(captions_per_image=n, caption_sampling=sampling)
    chosen = choose(captions, config, 0, epoch, "uid")
    assert len(chosen) == len(set(chosen)) == min(n, len(captions))
    assert set(chosen) <= set(range(len(captions)))
    assert chosen == choose(captions, config, 0, epoch, "uid")
    more = config.model_copy(update={"captions_per_image": n + 1})
    assert choose(captions, more, 0, epoch, "uid")[:n] == chosen


def test_uniform_draws_all_alike() -> None:
    config = config_of(captions_per_image=2)
    pairs = Counter(tuple(choose(scored(*[None] * 4), config, 0, e, "u")) for e in range(6000))
    assert len(pairs) == 12
    assert max(abs(count - 500) for count in pairs.values()) < 110  # 5 standard deviations


def test_quality_draws_in_proportion() -> None:
    config = config_of(captions_per_image=1, caption_sampling="quality")
    captions = scored(0.1, 0.3, None, 0.5)  # null weighs the mean, 0.3
    counts = np.zeros(4)
    for epoch in range(6000):
        counts[choose(captions, config, 0, epoch, "u")[0]] += 1
    expected = np.array([0.1, 0.3, 0.3, 0.5]) / 1.2
    assert np.abs(counts / 6000 - expected).max() < 0.03


def test_zero_quality_comes_last() -> None:
    config = config_of(captions_per_image=4, caption_sampling="quality")
    captions = scored(0.0, 0.5, 0.0, 0.1)
    orders = [choose(captions, config, 0, epoch, "u") for epoch in range(50)]
    assert all(set(order[2:]) == {0, 2} for order in orders)
    assert len({tuple(order[2:]) for order in orders}) == 2


def test_all_unscored_is_uniform() -> None:
    config = config_of(captions_per_image=1, caption_sampling="quality")
    counts = Counter(choose(scored(None, None), config, 0, e, "u")[0] for e in range(1000))
    assert 400 < counts[0] < 600


def test_eligible() -> None:
    captions = [
        caption("a", "alt", 0.2),
        caption("b", "annotations:short", 0.9),
        caption("c", "annotations:long", None),
        caption("d", "transformers:short", 0.5),
    ]
    assert eligible(captions, config_of()) == [0, 1, 2, 3]
    assert eligible(captions, config_of(min_caption_quality=0.5)) == [1, 2, 3]
    for item, agreement in zip(captions, (0.9, 0.1, None, 0.6), strict=True):
        item["scores"]["agreement"] = agreement
    assert eligible(captions, config_of(min_caption_agreement=0.6)) == [0, 2, 3]
    both = config_of(min_caption_agreement=0.6, min_caption_quality=0.5)
    assert eligible(captions, both) == [2, 3]
    assert eligible(captions, config_of(caption_sources=["alt"])) == [0]
    assert eligible(captions, config_of(caption_sources=["annotations:*", "alt"])) == [0, 1, 2]
    assert choose(captions, config_of(caption_sources=["nobody"]), 0, 0, "u") == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"caption_sources": ["annotation:*"]},
            r"caption_sources=\['annotation:\*'\]: none of the",
        ),
        ({"min_caption_quality": 0.9}, r"min_caption_quality=0.9: none of the"),
        (
            {"caption_sources": ["alt"], "min_caption_quality": 0.5},
            "caption_sources.* and .*quality",
        ),
    ],
)
def test_a_choice_that_leaves_no_caption_is_refused(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    write_shards(tmp_path, 70)  # an alt text of quality 0.25 and another caption of 0.75
    config = DataConfig(shards=str(tmp_path), cache_dir=str(tmp_path / "cache"), **keys)
    with pytest.raises(ConfigError, match=says) as error:
        check_captioned(ShardIndex.open(config), config)
    assert "alt (70), annotations:short (70)" in str(error.value)


def test_a_threshold_that_few_captions_pass_is_no_mistake(tmp_path: Path) -> None:
    write_shards(tmp_path, 600, captions=lambda n: [caption("a", quality=0.99 if n == 6 else 0.3)])
    assert not is_refused(tmp_path, min_caption_quality=0.9)
    assert is_refused(tmp_path, min_caption_quality=0.995)


def is_refused(shards: Path, **keys: Any) -> bool:
    config = DataConfig(shards=str(shards), cache_dir=str(shards / "cache"), **keys)
    try:
        check_captioned(ShardIndex.open(config), config)
    except ConfigError:
        return True
    return False


def test_a_choice_that_leaves_captions_passes(tmp_path: Path) -> None:
    write_shards(tmp_path, 70, captions=lambda n: two_captions(n) if n > 60 else [])
    for sources in (None, ["alt"], ["annotations:*"], []):
        assert not is_refused(tmp_path, caption_sources=sources)
    assert is_refused(tmp_path, caption_sources=["weak:*"])


def test_shards_without_any_caption_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, captions=lambda n: [])
    config = DataConfig(shards=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="text=null for I-JEPA"):
        check_captioned(ShardIndex.open(config), config)
