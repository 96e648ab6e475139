from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tcjepa.data.captions import choose, eligible
from tcjepa.data.config import DataConfig
from tests.tcjepa.shards import caption


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
